"""Names, labels and metadata that all owned objects of a job share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from visionrl.checks import runs_task_app
from visionrl.job import API_GROUP, API_VERSION, KIND, Component, Job
from visionrl_core.mutability import immutable_part

Manifest = dict[str, Any]

JOB_LABEL = f"{API_GROUP}/job"
COMPONENT_LABEL = f"{API_GROUP}/component"
ATTEMPT_LABEL = f"{API_GROUP}/attempt"
HASH_ANNOTATION = f"{API_GROUP}/hash"
CONFIG_ANNOTATION = f"{API_GROUP}/config"
KEY_ANNOTATION = f"{API_GROUP}/key"
"""On pods: digest of the key that they were started with."""
OWNER_ANNOTATION = f"{API_GROUP}/job-uid"
"""On pods and claims: the job object that they belong to; another one may have had its name."""

INPUTS_ANNOTATION = f"{API_GROUP}/template-inputs"
"""On Deployments and Workloads: digest of what their pod templates were made for."""

COMPONENTS: tuple[Component, ...] = ("taskApp", "inference", "trainer")
Part = Component | Literal["export"]
"""What has pods: the components, and the exporter after the end."""
SUFFIXES: dict[Part, str] = {"taskApp": "taskapp", "inference": "inference", "trainer": "trainer", "export": "export"}
PORT = 8000
USER = 10001

# What the *restricted* Pod Security Standard asks for.
POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class Owner:
    """The VisionRLJob object that owns all others: deleting it deletes them."""

    name: str
    namespace: str
    uid: str


@dataclass(frozen=True, order=True)
class Ref:
    """An owned object by kind and name; its namespace is the job's."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def ref(manifest: Manifest) -> Ref:
    return Ref(manifest["kind"], manifest["metadata"]["name"])


def component_name(job_name: str, component: Component) -> str:
    """Name of a component's Deployment and Service."""
    return f"{job_name}-{SUFFIXES[component]}"


def trainer_job_name(job_name: str, attempt: int) -> str:
    return f"{component_name(job_name, 'trainer')}-{attempt}"


def service_url(job_name: str, component: Component, namespace: str = "") -> str:
    """With ``namespace``, as pods of other namespaces find it, too."""
    return f"http://{component_name(job_name, component)}{f'.{namespace}.svc' if namespace else ''}:{PORT}"


def component_url(job: Job, owner: Owner, component: Component) -> str:
    """Where a component's pods find another one. A task app that runs elsewhere gets the address of inference from the
    trainer."""
    if component == "taskApp" and job.spec.task_app.url is not None:
        return job.spec.task_app.url
    return service_url(job.name, component, "" if runs_task_app(job.spec) else owner.namespace)


def selector(job_name: str, component: Part | None = None) -> dict[str, str]:
    """Labels that select a job's pods, or those of one component."""
    labels = {JOB_LABEL: job_name}
    return labels if component is None else labels | {COMPONENT_LABEL: SUFFIXES[component]}


def labels(job_name: str, component: Part | None = None) -> dict[str, str]:
    own = {} if component is None else {"app.kubernetes.io/component": SUFFIXES[component]}
    return {
        "app.kubernetes.io/name": "visionrl",
        "app.kubernetes.io/instance": job_name,
        "app.kubernetes.io/managed-by": "visionrl-operator",
        **own,
        **selector(job_name, component),
    }


def owned_manifest(
    api_version: str, kind: str, name: str, owner: Owner, component: Component | None = None, **content: Any
) -> Manifest:
    """A manifest with labels and owner; ``content`` holds ``spec``, ``data`` and the like."""
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


def seal(manifest: Manifest) -> Manifest:
    """The manifest with the hash of its whole content as an annotation: an object with another hash is out of date."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), HASH_ANNOTATION: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def sealed_hash(manifest: Manifest) -> str:
    return manifest["metadata"]["annotations"][HASH_ANNOTATION]


def config_digest(job: Job) -> str:
    """Changes exactly with the fields that components read only when they start."""
    return digest(immutable_part(job.spec))


def key_digest(key: str) -> str:
    """What is shown of a key. It is random and long, so nobody finds it from its digest."""
    return digest({"key": key})


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
