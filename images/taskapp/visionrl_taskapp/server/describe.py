"""What the task is, for `/info` and `/task_info`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, get_args

from visionrl.checks import Problem
from visionrl.job import FIRST_TRAINING_SEED, EnvSettings
from visionrl.rollout import EnvSpec, PolicyName, Safety
from visionrl.tools import TOOL_NAME
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS, ACTIONS
from visionrl_taskapp.server.validation import RequestError

SERVICE = "visionrl-taskapp"
VERSION = version("visionrl")

MAX_SEED = 2**53
_MAX_SEEDS = 1000


def task_info(seed: int | None = None) -> dict[str, Any]:
    """The reference system's TaskInfo, of one seed's task where it is given."""
    default_seed: int = EnvSpec().seed
    return {
        "task": {"id": "crafter", "name": "Crafter from images", "version": VERSION},
        "environment": "crafter",
        "seed": default_seed if seed is None else seed,
        "dataset": {
            "id": "crafter",
            "seed_range": [0, MAX_SEED],
            "default_seed": default_seed,
            "evaluation_seeds": [0, FIRST_TRAINING_SEED - 1],
        },
        "rubric": {
            "outcome": "unique achievements of the episode, out of 22",
            "events": "+1 for each achievement unlocked for the first time",
        },
        "inference": {
            "api": "OpenAI chat completions",
            "tool": TOOL_NAME,
            "policies": list(get_args(PolicyName)),
        },
        "limits": Safety().model_dump(),
        "action_space": {"type": "discrete", "size": len(ACTIONS), "actions": list(ACTIONS)},
        "observation": {
            "type": "image",
            "format": "PNG, RGB",
            "size": EnvSettings().image_size,
            "view": "9 × 7 cells of map above 9 × 2 cells of inventory",
        },
        "achievements": list(ACHIEVEMENTS),
    }


def seeds_of(query: Iterable[tuple[str, str]]) -> list[int]:
    """The seeds of a query string: `seed=1`, repeated, or `seeds=1,2,3`. Raises :class:`RequestError`."""
    seeds: list[int] = []
    for name, value in query:
        if name not in ("seed", "seeds"):
            raise RequestError([Problem(name, "unknown parameter; known: seed, seeds")])
        for text in value.split(","):
            text = text.strip()
            if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_SEED):
                raise RequestError([Problem(name, f"{text[:40]!r} is no seed: give integers from 0 to {MAX_SEED}")])
            seeds.append(int(text))
    if len(seeds) > _MAX_SEEDS:
        raise RequestError([Problem("seeds", f"{len(seeds)} seeds; ask for at most {_MAX_SEEDS} at once")])
    return seeds
