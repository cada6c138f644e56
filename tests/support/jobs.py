"""Small valid jobs to start tests from."""

from __future__ import annotations

import copy
from typing import Any

from recipes.learn.jobs import changed
from visionrl.job import Job

SMALLEST: dict[str, Any] = {
    "apiVersion": "visionrl.dev/v1alpha1",
    "kind": "VisionRLJob",
    "metadata": {"name": "demo"},
    "spec": {
        "model": {"base": "tiny"},
        "rollout": {"envConfig": {"imageSize": 144}},
        "training": {"iterations": 3},
    },
}

WARM_START = {"training.warmStart": {"episodes": 4, "steps": 4}}


def document(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The smallest job with values set at dotted paths below ``spec``."""
    return changed(copy.deepcopy(SMALLEST), changes or {})


def job(changes: dict[str, Any] | None = None) -> Job:
    return Job.model_validate(document(changes))
