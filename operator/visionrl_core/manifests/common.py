"""Names, labels and metadata that all children of a job share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from visionrl.job import API_GROUP, API_VERSION, KIND, Component, Job
from visionrl_core.mutability import immutable_part

Manifest = dict[str, Any]

JOB_LABEL = f"{API_GROUP}/job"
COMPONENT_LABEL = f"{API_GROUP}/component"
ATTEMPT_LABEL = f"{API_GROUP}/attempt"
HASH_ANNOTATION = f"{API_GROUP}/hash"
CONFIG_ANNOTATION = f"{API_GROUP}/config"

COMPONENTS: tuple[Component, ...] = ("taskApp", "inference", "trainer")
SUFFIXES: dict[Component, str] = {"taskApp": "taskapp", "inference": "inference", "trainer": "trainer"}
PORT = 8000


@dataclass(frozen=True)
class Owner:
    """The VisionRLJob object that owns the children: deleting it deletes them."""

    name: str
    namespace: str
    uid: str


@dataclass(frozen=True, order=True)
class Ref:
    """A child by kind and name; the namespace is the job's."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def ref(manifest: Manifest) -> Ref:
    return Ref(manifest["kind"], manifest["metadata"]["name"])


def component_name(job_name: str, component: Component) -> str:
    """Name of a part's Deployment and Service."""
    return f"{job_name}-{SUFFIXES[component]}"


def trainer_job_name(job_name: str, attempt: int) -> str:
    return f"{component_name(job_name, 'trainer')}-{attempt}"


def service_url(job_name: str, component: Component) -> str:
    return f"http://{component_name(job_name, component)}:{PORT}"


def selector(job_name: str, component: Component | None = None) -> dict[str, str]:
    """Labels that find a job's pods, or one part's."""
    labels = {JOB_LABEL: job_name}
    return labels if component is None else labels | {COMPONENT_LABEL: SUFFIXES[component]}


def labels(job_name: str, component: Component | None = None) -> dict[str, str]:
    part = {} if component is None else {"app.kubernetes.io/component": SUFFIXES[component]}
    return {
        "app.kubernetes.io/name": "visionrl",
        "app.kubernetes.io/instance": job_name,
        "app.kubernetes.io/managed-by": "visionrl-operator",
        **part,
        **selector(job_name, component),
    }


def manifest(
    api_version: str, kind: str, name: str, owner: Owner, component: Component | None = None, **content: Any
) -> Manifest:
    """A child with labels and owner; ``content`` is its ``spec``, ``data`` and the like."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": labels(owner.name, component),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        **content,
    }


def seal(child: Manifest) -> Manifest:
    """The child with the hash of its whole content as an annotation: applying is needed when that differs."""
    metadata = child["metadata"]
    annotations = {**metadata.get("annotations", {}), HASH_ANNOTATION: digest(child)}
    return {**child, "metadata": {**metadata, "annotations": annotations}}


def sealed_hash(child: Manifest) -> str:
    return child["metadata"]["annotations"][HASH_ANNOTATION]


def config_digest(job: Job) -> str:
    """Changes exactly with the fields that parts read only when they start."""
    return digest(immutable_part(job.spec))


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
