"""Demonstrations: episodes of a player, as prompts, answers and frames."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visionrl.job import FIRST_TRAINING_SEED, JobSpec, WarmStart
from visionrl.rollout import Decision, EnvSpec, PolicySpec, Record, RolloutRequest, Safety
from visionrl.tools import tool_call_text
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS, policy_config

HELD_OUT_SHARE = 20
"""One episode in this many is kept for validation."""


@dataclass(frozen=True)
class Demonstration:
    """One decision of the player: the prompt of a model in its place, and the label."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[str, ...]
    label: str


@dataclass
class Demonstrations:
    """Decisions split by episode, and the frames' PNGs by hash."""

    training: list[Demonstration]
    validation: list[Demonstration]
    images: dict[str, bytes]
    tools: list[dict[str, Any]] | None = None
    returns: tuple[float, ...] = ()
    """Of the (perturbed) episodes."""
    digest: str = ""
    """Of the content of files: a resumed training must find the same. Empty for the player's episodes, which are a
    function of the job."""


async def collect(
    taskapp: TaskApp, spec: JobSpec, job_name: str, on_episode: Callable[[], None] = lambda: None
) -> Demonstrations:
    """Play the warm start's episodes. The same job gives the same demonstrations."""
    warm_start = spec.training.warm_start
    assert warm_start is not None
    episodes = warm_start.episodes
    assert episodes is not None
    found = Demonstrations([], [], {})

    async def play(index: int) -> None:
        response = await taskapp.rollout(_request(spec, warm_start, job_name, index), PATIENCE_SECONDS)
        held_out = index % HELD_OUT_SHARE == 0 and episodes > 1
        side = found.validation if held_out else found.training
        for decision in response.trajectories[0].decisions:
            if decision.messages is None:
                raise ValueError(f"{response.run_id}: the player's decisions carry no messages")
            side.append(Demonstration(tuple(decision.messages), tuple(decision.images), _answer(decision, warm_start)))
        found.images |= {digest: base64.b64decode(png) for digest, png in response.images.items()}
        found.tools = response.tools
        found.returns += (response.metrics.episode_returns[0],)
        on_episode()

    async with asyncio.TaskGroup() as tasks:
        for index in range(episodes):
            tasks.create_task(play(index))
    order = _content_key  # arrival order depends on timing; what is trained on must not
    found.training.sort(key=order)
    found.validation.sort(key=order)
    return found


def _answer(decision: Decision, warm_start: WarmStart) -> str:
    """What is imitated: the player's answer, or in a mixture what was executed."""
    if warm_start.player == "mixture" and decision.actions:
        return tool_call_text(decision.actions)
    return decision.label or decision.text


def _content_key(demonstration: Demonstration) -> bytes:
    content = json.dumps([demonstration.images, demonstration.label])
    return hashlib.sha256(content.encode()).digest()


def _request(spec: JobSpec, warm_start: WarmStart, job_name: str, index: int) -> RolloutRequest:
    alone = warm_start.player == "random"
    return RolloutRequest(
        run_id=f"{job_name}/warm-start/e{index}",
        mode="rl",
        env=EnvSpec(env_name=spec.rollout.env_name, config=spec.rollout.env_config, seed=FIRST_TRAINING_SEED + index),
        policy=PolicySpec(
            policy_name=f"{spec.rollout.env_name}-{'random' if alone else 'scripted'}",
            config=policy_config(
                spec, max_llm_calls=warm_start.turns, perturbation=0.0 if alone else warm_start.perturbation
            ),
        ),
        record=Record(trajectories=False, images=True, messages=True),
        safety=Safety(max_ops=spec.rollout.max_ops, max_time_s=spec.rollout.max_time_s),
    )
