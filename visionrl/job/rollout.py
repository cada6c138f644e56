"""Episodes: environment and policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from visionrl.job.base import MAX_SECONDS, Model, PositiveInt

POLICIES = ("react", "scripted", "random", "blind")
"""A model behind an inference server, a player that reads the environment's state, uniformly random actions, and the
best distribution over actions that does not depend on the observation."""

DEFAULT_ENVIRONMENT = "crafter"
ENV_NAME = "[a-z][a-z0-9-]{0,62}"


class EnvSettings(Model):
    """The environment of an episode: settings that environments share, Crafter's, and those of any other environment,
    which that environment checks."""

    model_config = ConfigDict(extra="allow")

    image_size: Annotated[int, Field(ge=63, le=1024)] = 288
    """Side of the square frame in pixels. 288 px make a Crafter cell 32 px: one visual token of Qwen3-VL."""
    difficulty: Literal["easy", "normal", "hard"] = "normal"
    """Of Crafter. `normal` is the stock game."""
    length: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    """Environment steps after which the episode ends."""

    @property
    def own(self) -> dict[str, Any]:
        """The settings that only the environment knows, by the names that the file uses."""
        return dict(self.model_extra or {})

    @property
    def action_names(self) -> tuple[str, ...]:
        """`actionNames` of the environment's own settings, by which environments without names (Gymnasium) have them,
        or the names in `actions` (OpenEnv), in alphabetic order, for a cluster keeps no other: the tiny model has a
        token for each."""
        names, actions = self.own.get("actionNames"), self.own.get("actions")
        if isinstance(names, list):
            return tuple(map(str, names))
        return tuple(sorted(map(str, actions))) if isinstance(actions, dict) else ()


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

    env_name: Annotated[str, Field(pattern=f"^{ENV_NAME}$")] = DEFAULT_ENVIRONMENT
    """Environment: crafter, gymnasium, openenv, or one that the task app's image brings."""
    policy_name: Annotated[str, Field(pattern=f"^{ENV_NAME}-react$")] | None = None
    """Policy that talks to the model; empty is `<envName>-react`, the only one."""
    max_concurrent: Annotated[int, Field(ge=1, le=4096)] = 8
    """Episodes in flight, those of an evaluation included."""
    max_ops: PositiveInt = 1000
    """Safety limit: model calls plus environment steps of one episode."""
    max_time_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 3600.0
    """Safety limit: wall-clock seconds of one episode."""
    env_config: EnvSettings = EnvSettings()
    policy_config: PolicySettings = PolicySettings()
