"""The run in one small document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visionrl.job import Job
from visionrl_trainer.rollout.evaluate import paired_gain
from visionrl_trainer.state.run import RunState


def summarise(
    job: Job, state: RunState, metrics: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The results of a finished run, for people and scripts."""
    rollout_minutes = state.seconds.get("rollout", 0.0) / 60
    summary: dict[str, Any] = {
        "job": job.name,
        "iterations": state.iteration,
        "episodes": state.episodes,
        "turns": state.turns,
        "tokens": state.tokens,
        "adapter": state.version,
        "mismatch": {"max_abs": state.worst_mismatch, "mean_abs": state.mean_mismatch},
        "episodes_per_minute": state.episodes / rollout_minutes if rollout_minutes else None,
        "seconds": {name: round(seconds, 1) for name, seconds in state.seconds.items()},
        "reward": [record["reward"] for record in metrics],
    }
    if evaluations:
        before, after = evaluations[0], evaluations[-1]
        summary["evaluation"] = {"before": before, "after": after}
        earlier, later = _by_seed(before), _by_seed(after)
        if len(evaluations) > 1 and (seeds := earlier.keys() & later.keys()):
            pairs = [(earlier[seed], later[seed]) for seed in sorted(seeds)]
            gain = paired_gain([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            summary["evaluation"]["gain"] = gain.model_dump()
    return summary


def _by_seed(evaluation: dict[str, Any]) -> dict[int, float]:
    """Returns of the seeds that were played."""
    return dict(zip(evaluation["seeds"], evaluation["returns"], strict=True))
