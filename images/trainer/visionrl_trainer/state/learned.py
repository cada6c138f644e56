"""Which fields of a job affect what is learned: a run resumes only with the same values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from visionrl.job import Job

SECTIONS = ("algorithm", "model", "rollout", "training")
"""Sections of the specification that affect learning."""
FREE = frozenset(
    {
        "training.iterations",
        "training.checkpointEvery",
        "training.keepCheckpoints",
        "training.microBatchSize",
        "training.microBatchTokens",
        "training.activationCheckpointing",
        "training.guards",
        "rollout.maxConcurrent",
        "rollout.maxTimeS",
        "rollout.policyConfig.topP",
        "rollout.policyConfig.turnTimeoutS",
    }
)
"""Fields of these sections that do not affect learning."""


def differences(before: Job, now: Job) -> list[str]:
    """Dotted paths of the fields that affect learning and differ between two jobs."""
    name = ["metadata.name"] if before.name != now.name else []
    one, other = (job.spec.model_dump(mode="json", by_alias=True, include=set(SECTIONS)) for job in (before, now))
    return [*name, *(f"spec.{path}" for path in _differences(one, other, ""))]


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    if path in FREE or one == other:
        return
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    else:
        yield path
