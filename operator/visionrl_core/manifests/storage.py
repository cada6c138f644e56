"""The claim for the run folder.

Its name holds the job object's identity: a job never continues, nor fills, the volume of a former one of its name. A
claim that is to outlive its job has no owner reference; an annotation says whose it is.
"""

from __future__ import annotations

from visionrl.job import Job
from visionrl_core.manifests.common import (
    CONTAINER_SECURITY,
    OWNER_ANNOTATION,
    POD_SECURITY,
    Manifest,
    Owner,
    Ref,
    digest,
    owned_manifest,
)

CLAIM = "PersistentVolumeClaim"
DEFAULT_SIZE = "20Gi"
NAME_DIGITS = 5


def run_claim_name(job: Job, owner: Owner) -> str | None:
    """The claim that holds the run folder; None where the folder lives as long as the trainer's pod."""
    if job.spec.storage.ephemeral:
        return None
    return job.spec.storage.run_claim or claim_of(owner).name


def made_claim(job: Job, owner: Owner) -> Ref | None:
    """The claim that the operator makes, where it makes one."""
    storage = job.spec.storage
    return None if storage.ephemeral or storage.run_claim else claim_of(owner)


def claim_of(owner: Owner) -> Ref:
    """What the operator calls a claim that it makes."""
    return Ref(CLAIM, f"{owner.name}-run-{digest(owner.uid)[:NAME_DIGITS]}")


def run_claim(job: Job, owner: Owner) -> Manifest | None:
    """The manifest of :func:`made_claim`."""
    storage, claim = job.spec.storage, made_claim(job, owner)
    if claim is None:
        return None
    storage_class = {"storageClassName": storage.storage_class_name} if storage.storage_class_name else {}
    manifest = owned_manifest(
        "v1",
        CLAIM,
        claim.name,
        owner,
        spec={
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": storage.run_size or DEFAULT_SIZE}},
            **storage_class,
        },
    )
    manifest["metadata"]["annotations"] = {OWNER_ANNOTATION: owner.uid}
    if storage.retention.when_deleted == "Retain":
        del manifest["metadata"]["ownerReferences"]
    return manifest


READER_SECONDS = 3600


def reader_pod(name: str, claim: str, path: str, image: str) -> Manifest:
    """A pod that mounts a claim, read-only, at ``path`` and does nothing for an hour at most: files are read from it.
    It belongs to whoever makes it, not to the operator."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "visionrl-fetch"}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": READER_SECONDS,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": POD_SECURITY,
            # The claim may lie on a node that takes GPU pods only.
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "reader",
                    "image": image,
                    "command": ["sleep", str(READER_SECONDS)],
                    "securityContext": CONTAINER_SECURITY,
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
                    "volumeMounts": [{"name": "run", "mountPath": path, "readOnly": True}],
                }
            ],
            "volumes": [{"name": "run", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}],
        },
    }
