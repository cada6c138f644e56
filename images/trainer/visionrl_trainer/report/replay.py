"""Replays: one episode on a held-out seed, frame by frame, for the report."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel

from visionrl.checks import evaluation_seeds
from visionrl.durable import write_atomically
from visionrl.job import JobSpec
from visionrl.rollout import EnvSpec, PolicySpec, Record, RolloutRequest, Safety
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS

logger = logging.getLogger(__name__)


class ReplayFrame(BaseModel):
    """One decision."""

    png: str
    """The frame that the policy saw, base64; empty for a policy that sees none."""
    actions: list[str]
    unlocked: list[str]
    valid: bool


class Replay(BaseModel):
    """One episode."""

    iteration: int
    policy: str
    seed: int
    frames: list[ReplayFrame]


async def record(taskapp: TaskApp, spec: JobSpec, policy: PolicySpec, iteration: int) -> Replay:
    """Play the first held-out seed and keep its frames."""
    seed = evaluation_seeds(spec)[0]
    request = RolloutRequest(
        run_id=f"{policy.config.model}/replay/s{seed}",
        mode="eval",
        env=EnvSpec(env_name=spec.rollout.env_name, config=spec.rollout.env_config, seed=seed),
        policy=policy,
        record=Record(trajectories=False, images=True),
        safety=Safety(max_ops=spec.rollout.max_ops, max_time_s=spec.rollout.max_time_s),
    )
    response = await taskapp.rollout(request, PATIENCE_SECONDS)
    frames = [
        ReplayFrame(
            png=response.images[decision.images[0]] if decision.images else "",
            actions=decision.actions,
            unlocked=decision.unlocked,
            valid=decision.valid,
        )
        for decision in response.trajectories[0].decisions
    ]
    return Replay(iteration=iteration, policy=policy.config.model, seed=seed, frames=frames)


def save(replay: Replay, folder: Path) -> None:
    """Keep a replay as ``<folder>/000012.json``, by its iteration."""
    write_atomically(folder / f"{replay.iteration:06d}.json", replay.model_dump_json())


def load_all(folder: Path) -> list[Replay]:
    """All replays of a run, by iteration; one that cannot be read is left out."""
    found = []
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            found.append(Replay.model_validate_json(path.read_bytes()))
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged and left out: %s", path, error)
    return found
