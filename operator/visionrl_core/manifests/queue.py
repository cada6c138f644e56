"""Kueue's Workload of a job: one pod set per component; and pods placed where Kueue admitted them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from visionrl.checks import runs_inference, runs_task_app
from visionrl.job import Component, Job
from visionrl_core.manifests.common import INPUTS_ANNOTATION, SUFFIXES, Manifest, Owner, digest, owned_manifest
from visionrl_core.manifests.inference import inference_deployment
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.taskapp import task_app_deployment
from visionrl_core.manifests.trainer import trainer_job

V1BETA1 = "kueue.x-k8s.io/v1beta1"
PRIORITY_SOURCE = "kueue.x-k8s.io/workloadpriorityclass"

# Of a pod template, what Kueue counts, and what it compares with nodes to choose a flavor.
COUNTED = ("nodeSelector", "affinity", "tolerations", "runtimeClassName", "resourceClaims")
COUNTED_OF_CONTAINERS = ("name", "image", "resources", "restartPolicy")


@dataclass(frozen=True)
class Place:
    """What the flavors and admission checks of an admission add to the pods of one component."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def workload_name(job_name: str) -> str:
    return f"{job_name}-workload"


def workload(
    job: Job, owner: Owner, api_version: str, priority: int | None, defaults: PodDefaults = NO_DEFAULTS
) -> Manifest:
    """Its pod sets are fixed while Kueue reserves quota for them; it carries what they were made for."""
    spec: Manifest = {
        "queueName": job.spec.queue_name,
        "podSets": [_pod_set(component, pods) for component, pods in pod_makers(job, owner, defaults).items()],
    }
    if job.spec.queue_priority_class is not None:
        spec |= {"priority": priority, **_priority_class(job.spec.queue_priority_class, api_version)}
    manifest = owned_manifest(api_version, "Workload", workload_name(job.name), owner, spec=spec)
    manifest["metadata"]["annotations"] = {INPUTS_ANNOTATION: made_for(job)}
    return manifest


def made_for(job: Job) -> str:
    """Digest of what may change in an accepted job and changes its pod sets. Not of the templates themselves: another
    version of the operator must not send a running job back to its queue."""
    return digest(job.spec.task_app.resources.model_dump(mode="json", by_alias=True, exclude_none=True))


def pod_makers(job: Job, owner: Owner, defaults: PodDefaults = NO_DEFAULTS) -> dict[Component, Manifest]:
    """The Deployments and the trainer's Job of a job."""
    made: dict[Component, Manifest] = {}
    if runs_task_app(job.spec):
        made["taskApp"] = task_app_deployment(job, owner, defaults=defaults)
    if runs_inference(job.spec):
        made["inference"] = inference_deployment(job, owner, defaults=defaults)
    return made | {"trainer": trainer_job(job, 0, owner, defaults=defaults)}


def _pod_set(component: Component, pods: Manifest) -> Manifest:
    template = pods["spec"]["template"]["spec"]
    counted = {name: template[name] for name in COUNTED if name in template}
    for containers in ("initContainers", "containers"):
        if containers in template:
            counted[containers] = [
                {name: container[name] for name in COUNTED_OF_CONTAINERS if name in container}
                for container in template[containers]
            ]
    return {
        "name": SUFFIXES[component],
        "count": pods["spec"].get("replicas", 1),
        "template": {"spec": counted},
    }


def _priority_class(name: str, api_version: str) -> Manifest:
    if api_version == V1BETA1:
        return {"priorityClassName": name, "priorityClassSource": PRIORITY_SOURCE}
    return {"priorityClassRef": {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": name}}


# --- where Kueue admitted the pods


def placed(pods: Manifest, place: Place) -> Manifest:
    """The Deployment or Job with pods that go where they were admitted."""
    template = pods["spec"]["template"]
    metadata, spec = template["metadata"], template["spec"]
    tolerations = [*spec.get("tolerations", ())]
    tolerations += [each for each in place.tolerations if each not in tolerations]
    added = {"nodeSelector": {**spec.get("nodeSelector", {}), **place.node_selector}, "tolerations": tolerations}
    return {
        **pods,
        "spec": {
            **pods["spec"],
            "template": {
                "metadata": {
                    **metadata,
                    "labels": {**place.labels, **metadata["labels"]},
                    "annotations": {**place.annotations, **metadata["annotations"]},
                },
                "spec": {**spec, **{name: value for name, value in added.items() if value}},
            },
        },
    }


def conflict(pods: Manifest, place: Place, defaults: PodDefaults = NO_DEFAULTS) -> str | None:
    """What the job, or the cluster's defaults for its pods, say and the admission says otherwise."""
    template, given = pods["spec"]["template"], defaults.template
    labels, annotations = (given.get("metadata", {}).get(kind, {}) for kind in ("labels", "annotations"))
    compared = (
        (
            "nodeSelector",
            template["spec"].get("nodeSelector", {}),
            given.get("spec", {}).get("nodeSelector", {}),
            place.node_selector,
        ),
        ("label", template["metadata"]["labels"], labels, place.labels),
        ("annotation", template["metadata"]["annotations"], annotations, place.annotations),
    )
    for what, ours, default, theirs in compared:
        for key, value in theirs.items():
            if ours.get(key, value) != value:
                where = "the chart's jobPods.template" if default.get(key) == ours[key] else "the job"
                return f"{what} {key} is {ours[key]} in {where} and {value} where it was admitted"
    return None
