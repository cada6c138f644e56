"""Where server and trainer run relative to each other (``spec.placement.topology``)."""

from __future__ import annotations

from visionrl.checks import exports_base
from visionrl.job import Component, Job
from visionrl_core.manifests.common import Manifest, selector

HOSTNAME = "kubernetes.io/hostname"


def inference_affinity(job: Job) -> Manifest:
    # With a warm start the trainer runs first and inference follows it; otherwise the other way round.
    return _affinity(job, "trainer", follows=exports_base(job.spec))


def trainer_affinity(job: Job) -> Manifest:
    return _affinity(job, "inference", follows=not exports_base(job.spec))


def _affinity(job: Job, other: Component, follows: bool) -> Manifest:
    """Affinity to the other component. ``SameNode`` binds the one that starts second: two pods that require each other
    could never be scheduled. The first one only prefers the other's node, so that it comes back there."""
    term = {"labelSelector": {"matchLabels": selector(job.name, other)}, "topologyKey": HOSTNAME}
    match job.spec.placement.topology:
        case "DifferentNodes":
            return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        case "SameNode" if follows:
            return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        case "SameNode":
            preferred = {"weight": 100, "podAffinityTerm": term}
            return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}
    return {}
