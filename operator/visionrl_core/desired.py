"""What should exist for a job that has not ended or still copies, and what its components wait for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from visionrl.checks import runs_task_app
from visionrl.job import Component, Job
from visionrl.status import JobStatus
from visionrl_core import attempts, drift, revisions
from visionrl_core.clock import stamp
from visionrl_core.manifests.common import (
    HASH_ANNOTATION,
    SUFFIXES,
    Manifest,
    Owner,
    Ref,
    component_name,
    ref,
    seal,
    sealed_hash,
)
from visionrl_core.manifests.config import config_map, secret
from visionrl_core.manifests.export import export_job, export_policy
from visionrl_core.manifests.inference import inference_deployment
from visionrl_core.manifests.queue import Place, placed
from visionrl_core.manifests.taskapp import task_app_deployment
from visionrl_core.manifests.trainer import trainer_job
from visionrl_core.observed import Observed, StuckPod
from visionrl_core.policies import failure, readiness
from visionrl_core.policies.readiness import Waiting

# Created once and never applied again: running components hold the key, templates of Jobs and device claims are
# immutable, and a volume claim may have been grown by a person.
MADE_ONCE = ("Secret", "Job", "PersistentVolumeClaim", "ResourceClaimTemplate", "Workload")
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


@dataclass(frozen=True)
class Plan:
    """The pods that should be, and what the others wait for."""

    workloads: tuple[Manifest, ...] = ()
    inference_waits: Waiting | None = None
    trainer_waits: Waiting | None = None
    retry_at: datetime | None = None


def plan(
    job: Job,
    owner: Owner,
    status: JobStatus,
    places: Mapping[Component, Place],
    observed: Observed,
    now: datetime,
) -> Plan:
    """Task app first; inference once its base model exists; the trainer when what it needs is ready."""
    key, defaults = attempts.current_key(job, observed), observed.rules.pod_defaults
    inference_exists = observed.has(Ref("Deployment", component_name(job.name, "inference")))
    inference_waits = readiness.inference_waits_for(job.spec, observed, inference_exists)
    trainer_waits, retry_at = _trainer_waits(job, status, observed, now)
    if key is None:  # pods carry its digest: they are decided about once it is made
        return Plan((), inference_waits, trainer_waits, retry_at)

    workloads = []
    if runs_task_app(job.spec):
        resources = job.spec.task_app.resources.model_dump(mode="json", by_alias=True, exclude_none=True)
        task_app = placed(task_app_deployment(job, owner, key, defaults), places.get("taskApp", Place()))
        workloads.append(_kept(task_app, {"resources": resources, "key": key}, observed))
    if inference_waits is None:
        inference = placed(inference_deployment(job, owner, key, defaults), places.get("inference", Place()))
        workloads.append(_kept(inference, {"key": key}, observed))
    if trainer_waits is None:
        trainer = trainer_job(job, status.attempt, owner, key, defaults)
        workloads.append(placed(trainer, places.get("trainer", Place())))
    return Plan(tuple(seal(manifest) for manifest in workloads), inference_waits, trainer_waits, retry_at)


def _kept(deployment: Manifest, inputs: dict[str, Any], observed: Observed) -> Manifest:
    return revisions.with_revision(deployment, inputs, observed.objects.get(ref(deployment)))


def _trainer_waits(
    job: Job, status: JobStatus, observed: Observed, now: datetime
) -> tuple[Waiting | None, datetime | None]:
    """What the current attempt waits for, and when to look again where that is time alone."""
    if observed.trainer(status.attempt) is not None:
        return None, None
    if observed.trainers or observed.orphaned_trainer_pods:
        stuck = next((pod for pod in observed.stuck if pod.component == SUFFIXES["trainer"]), None)
        if stuck is not None and not stuck.node_is_lost:
            return Waiting("NodeUnreachable", _what_a_person_must_do(stuck)), None
        return Waiting("PreviousAttemptEnding", "waits until the previous trainer is gone"), None
    retry_at = failure.retry_at(job.spec.failure_policy, status.attempts)
    if retry_at is not None and now < retry_at:
        return Waiting("BackOff", f"starts at {stamp(retry_at)}"), retry_at
    return readiness.trainer_waits_for(job.spec, observed), None


def needs_applying(manifest: Manifest, observed: Observed) -> bool:
    live = observed.objects.get(ref(manifest))
    if live is None:
        return True
    if manifest["kind"] in MADE_ONCE:
        return False
    annotations = live.get("metadata", {}).get("annotations", {})
    return annotations.get(HASH_ANNOTATION) != sealed_hash(manifest) or bool(drift.differences(manifest, live))


def exporter(job: Job, owner: Owner, status: JobStatus, observed: Observed) -> tuple[Manifest, ...]:
    """The exporter, and what it mounts, until the copies are made."""
    if status.result is None or status.result.export in (None, "Exported"):
        return ()
    policy, key = export_policy(job, owner), attempts.current_key(job, observed)
    needed = [
        secret(owner),
        config_map(job, owner),
        *([policy] if policy else []),
        *([export_job(job, status.attempt, owner, key, observed.rules.pod_defaults)] if key is not None else []),
    ]
    return tuple(sealed for sealed in map(seal, needed) if needs_applying(sealed, observed))


def _what_a_person_must_do(pod: StuckPod) -> str:
    return (
        f"node {pod.node} has not confirmed since {stamp(pod.since)} that the previous trainer's pod {pod.name} ended. "
        f"Bring it back; if it is off for good, delete the node or taint it {OUT_OF_SERVICE}=nodeshutdown:NoExecute"
    )
