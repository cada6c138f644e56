"""What the task is, for `/info` and `/task_info`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from visionrl.checks import Problem
from visionrl.job import FIRST_TRAINING_SEED, POLICIES
from visionrl.rollout import EnvSpec, Safety
from visionrl.seeds import MAX_SEED
from visionrl.tools import TOOL_NAME
from visionrl_taskapp.envs.protocol import Description
from visionrl_taskapp.envs.registry import Prepared
from visionrl_taskapp.server.validation import RequestError

SERVICE = "visionrl-taskapp"
VERSION = version("visionrl")

_MAX_SEEDS = 1000


def task_info(game: Prepared, seed: int | None = None) -> dict[str, Any]:
    """The reference system's TaskInfo, of one seed's task where it is given."""
    default_seed: int = EnvSpec().seed
    described, actions = game.description, game.description.actions
    return {
        "task": {"id": game.name, "name": described.title, "version": VERSION},
        "environment": game.name,
        "seed": default_seed if seed is None else seed,
        "dataset": {
            "id": game.name,
            "seed_range": list(described.seeds),
            "default_seed": default_seed,
            "evaluation_seeds": [0, FIRST_TRAINING_SEED - 1],
        },
        "rubric": described.rubric or _rubric(described),
        "inference": {
            "api": "OpenAI chat completions",
            "tool": TOOL_NAME,
            "policies": [f"{game.name}-{kind}" for kind in POLICIES if _plays(game, kind)],
        },
        "limits": Safety().model_dump(),
        "action_space": {"type": "discrete", "size": len(actions), "actions": list(actions)},
        "observation": dict(described.observation),
        "achievements": list(described.events),
        "scores": [
            {"name": score.name, "text": score.text, "direction": score.direction, "best": score.best}
            for score in described.scores
        ],
        "deterministic": described.deterministic,
    }


def _rubric(game: Description) -> Mapping[str, str]:
    events = ", ".join(game.events)
    return {"outcome": game.scores[0].text} | ({"events": f"each once: {events}"} if events else {})


def _plays(game: Prepared, kind: str) -> bool:
    match kind:
        case "scripted":
            return game.description.player is not None
        case "blind":
            return game.description.blind is not None
    return True


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
