"""Volumes that the components share: what could never be mounted where the job asks for it."""

from __future__ import annotations

from collections.abc import Collection

from visionrl.checks import runs_inference
from visionrl.job import JobSpec

ONE_NODE = ("ReadWriteOnce", "ReadWriteOncePod")


def cache_conflict(spec: JobSpec, access_modes: Collection[str]) -> str | None:
    """Why inference and trainer cannot both mount the model cache. On a second node, a pod would wait for ever for a
    volume that the first one keeps (Multi-Attach). ``access_modes`` of the claim; empty where nobody knows them."""
    claim = spec.storage.model_cache_claim
    one_node = bool(access_modes) and all(mode in ONE_NODE for mode in access_modes)
    one_pod = "ReadWriteOncePod" in access_modes
    if claim is None or not one_node or not runs_inference(spec):
        return None
    if one_pod:
        return f"spec.storage.modelCacheClaim: {claim} is ReadWriteOncePod, and inference and trainer both mount it"
    if spec.placement.topology == "SameNode":
        return None
    return (
        f"spec.storage.modelCacheClaim: {claim} is {', '.join(access_modes)}, of one node at a time, and inference and "
        "trainer both mount it: set spec.placement.topology to SameNode, or name a ReadWriteMany claim"
    )
