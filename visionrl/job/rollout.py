"""Episodes: environment and policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionrl.job.base import MAX_SECONDS, Model, PositiveInt


class EnvSettings(Model):
    """The environment of an episode."""

    image_size: Annotated[int, Field(ge=63, le=1024)] = 288
    """Side of the square frame in pixels. 288 px make a Crafter cell 32 px: one visual token of Qwen3-VL."""
    difficulty: Literal["easy", "normal", "hard"] = "normal"
    """`normal` is stock Crafter."""
    length: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    """Environment steps after which the episode ends."""


class PolicySettings(Model):
    """How the policy turns observations into prompts and answers into actions."""

    use_vision: bool | None = None
    """Send frames; empty detects it from the model's name."""
    image_only_mode: bool = True
    """Send only the frame, without the state as text."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of evaluation episodes. Training samples the whole distribution: a nucleus biases the ratios."""
    max_tokens: PositiveInt = 512
    """Longest answer of one turn, in tokens."""
    max_llm_calls: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Largest number of turns in an episode."""
    max_actions: Annotated[int, Field(ge=1, le=8)] = 5
    """Largest number of actions in one tool call."""
    history_turns: Annotated[int, Field(ge=0, le=64)] = 1
    """Previous answers that stay in the prompt as the model's own turns (without their frames)."""
    segment_turns: Annotated[int, Field(ge=1, le=64)] = 1
    """Turns that share a context: within a segment, frames and answers stay in the prompt and each prompt continues the
    previous one; the next segment starts with an empty context. 1 is one frame per prompt. A segment is one sequence
    in training."""
    system_prompt: str | None = None
    """Replaces the built-in prompt (rules, strategy, tool use)."""
    turn_timeout_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 120.0
    """Deadline of one turn in seconds, retries included; after it, the episode is aborted."""


class Rollout(Model):
    """Episodes: environment, policy, concurrency."""

    env_name: Literal["crafter"] = "crafter"
    """Environment."""
    policy_name: Literal["crafter-react"] = "crafter-react"
    """Policy that talks to the model."""
    max_concurrent: Annotated[int, Field(ge=1, le=4096)] = 8
    """Episodes in flight."""
    max_ops: PositiveInt = 1000
    """Safety limit: model calls plus environment steps of one episode."""
    max_time_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 3600.0
    """Safety limit: wall-clock seconds of one episode."""
    env_config: EnvSettings = EnvSettings()
    policy_config: PolicySettings = PolicySettings()
