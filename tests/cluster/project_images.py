"""The project's own four images, in the cluster under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .kube import cluster as kube_cluster
from .kube import images

REPOSITORY = Path(__file__).parents[2]
PARTS = ("operator", "taskapp", "inference", "trainer")
ON_CPU_ENVIRONMENT = ("inference", "trainer")


# As `make e2e-kind` calls them, too.
PREFIX, TAG = "localhost/visionrl-", "test"


def tag(part: str) -> str:
    return f"{PREFIX}{part}:{TAG}"


def chart_values() -> dict[str, Any]:
    """Values of the chart for these images."""
    return {
        "image": {"repository": f"{PREFIX}operator", "tag": TAG},
        "jobImages": {"prefix": PREFIX, "tag": TAG},
    }


def ensure(kube: kube_cluster.Running, *parts: str) -> None:
    """Build the parts' images and load them; in a cluster that is not ours they are expected to be."""
    if kube.cluster is None:
        return
    for part in parts:
        build_args = {}
        if part in ON_CPU_ENVIRONMENT:
            build_args["BASE"] = images.build_cpu_environment(REPOSITORY / "requirements" / "cpu.lock")
        images.build(REPOSITORY / "images" / part, tag(part), build_args, context=REPOSITORY)
        kube.load(tag(part))
