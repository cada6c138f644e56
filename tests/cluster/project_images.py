"""The project's own four images, in the cluster under test."""

from __future__ import annotations

from pathlib import Path

from .kube import cluster as kube_cluster
from .kube import images

REPOSITORY = Path(__file__).parents[2]
PARTS = ("operator", "taskapp", "inference", "trainer")
ON_CPU_ENVIRONMENT = ("inference", "trainer")


def tag(part: str) -> str:
    """What `make e2e-kind` calls them, too."""
    return f"localhost/visionrl-{part}:test"


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
