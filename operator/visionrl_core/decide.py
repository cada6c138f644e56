"""One job, what exists of it, and the time: what to apply, what to delete, what to report, when to look again.

``decide`` is pure and level-triggered. Nothing depends on having seen an event, and its answer to the same input is
the same: killed anywhere and run again, the executor that carries it out (pods or processes) converges. The executor
writes the status first, then deletes, then applies, each in the given order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from visionrl.job import Component, Job
from visionrl.status import JobStatus, Result
from visionrl_core import accepted, attempts, conditions, drift, revisions
from visionrl_core.attempts import AttemptEnd
from visionrl_core.clock import stamp
from visionrl_core.conditions import ComponentView
from visionrl_core.manifests import base_manifests
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
    trainer_job_name,
)
from visionrl_core.manifests.config import config_map, secret
from visionrl_core.manifests.export import export_job, export_policy
from visionrl_core.manifests.inference import inference_deployment
from visionrl_core.manifests.queue import Place, placed
from visionrl_core.manifests.storage import made_claim
from visionrl_core.manifests.taskapp import task_app_deployment
from visionrl_core.manifests.trainer import trainer_job
from visionrl_core.observed import JobObject, Observed, ObservedComponent, StuckPod
from visionrl_core.policies import failure, lifecycle, queueing, readiness, results, volumes
from visionrl_core.policies.queueing import Admission
from visionrl_core.policies.readiness import Waiting
from visionrl_core.policies.validation import Verdict, validate

# Created once and never applied again: running components hold the key, templates of Jobs and device claims are
# immutable, and a volume claim may have been grown by a person.
MADE_ONCE = ("Secret", "Job", "PersistentVolumeClaim", "ResourceClaimTemplate", "Workload")

RUN_FOLDER_GONE = (
    "spec.training.iterations cannot be raised: the job is complete and its run folder is gone "
    "(spec.storage.ephemeral, spec.storage.retention.whenFinished, or a claim that was deleted). Start a new job"
)
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


@dataclass(frozen=True)
class DesiredState:
    """What should exist for a job, and what its status should say."""

    status: JobStatus
    manifests: tuple[Manifest, ...] = ()
    """To apply, in order: those that are absent or out of date."""
    deletions: tuple[Ref, ...] = ()
    forced: tuple[Ref, ...] = ()
    """Pods to delete without waiting for their node."""
    workload_status: Mapping[str, Any] | None = None
    """What to merge into the status of Kueue's Workload, after everything else."""
    requeue_at: datetime | None = None
    """When time alone changes the decision."""
    delete_job: bool = False
    """The object itself has outlived ``ttlSecondsAfterFinished``."""


@dataclass(frozen=True)
class Plan:
    """The pods that should be, and what the others wait for."""

    workloads: tuple[Manifest, ...] = ()
    inference_waits: Waiting | None = None
    trainer_waits: Waiting | None = None
    retry_at: datetime | None = None


def decide(job_object: JobObject, previous: JobStatus, observed: Observed, now: datetime) -> DesiredState:
    """Decide about one job. ``previous`` is the status as it was last written."""
    before = accepted.job_of(previous.accepted) or observed.accepted
    verdict = validate(job_object.document, before, observed.rules)
    if before is None and verdict.job is not None:
        conflict = volumes.cache_conflict(verdict.job.spec, observed.cache_access)
        verdict = Verdict(None, False, "CacheNotShared", conflict) if conflict else verdict
    if verdict.job is None:
        return DesiredState(_rejected(job_object, previous, verdict, now))
    job, status, outcome = verdict.job, previous, conditions.outcome_of(previous)
    if before is not None and outcome is not None and outcome.type == "Complete" and _asks_for_more(before, job):
        if _run_folder_is_gone(job, job_object.owner, observed):
            job, verdict = before, Verdict(before, False, "RunFolderGone", RUN_FOLDER_GONE)
        else:
            status, outcome = attempts.reopened(previous), None
    owner = job_object.owner
    admission = queueing.admission(job, owner, observed)
    stop = _why_no_pod_may_run(job, admission)
    if outcome is None:
        status = lifecycle.keep_time(status, stop is not None, now)
        status, outcome = attempts.settle(status, job, observed, stop, now)
        outcome = outcome or _missed_deadline(job, status, now) or _refused(admission)
        if outcome is not None:
            status = _finish(status, outcome, now)

    succeeded = None if outcome is None else outcome.type == "Complete"
    change = queueing.workload_change(job, owner, status, observed, admission, succeeded, now)
    if outcome is not None:
        result = results.result_of(job, job_object.owner, status, observed, outcome.type == "Complete")
        status = status.model_copy(update={"result": result})
        # Deleting the object would end its exporter, too.
        expires = lifecycle.expiry(job.spec.lifecycle, status) if result.export != "Exporting" else None
        return DesiredState(
            status=_report(job_object, job, verdict, status, observed, admission, outcome, Plan(), now),
            manifests=_exporter(job_object, job, status, observed),
            deletions=_deletions_at_the_end(job, job_object.owner, result, observed, stop is not None),
            workload_status=change.status,
            requeue_at=expires,
            delete_job=expires is not None and expires <= now,
        )

    places = admission.places if admission is not None else {}
    plan = Plan() if stop is not None or places is None else _plan(job_object, job, status, places, observed, now)
    desired = [*base_manifests(job, owner, scraped_by=observed.rules.scraped_by), *plan.workloads]
    desired += [seal(change.make)] if change.make is not None else []
    timers = [deadline.at for deadline in lifecycle.deadlines(job.spec, status)]
    timers += [plan.retry_at] if plan.retry_at else []
    if attempts.live(status) is not None:
        timers.append(now + timedelta(seconds=job.spec.lifecycle.progress_deadline_seconds) - observed.idle)
    return DesiredState(
        status=_report(job_object, job, verdict, status, observed, admission, None, plan, now),
        manifests=tuple(manifest for manifest in desired if _needs_applying(manifest, observed)),
        deletions=(*_deletions(job, status, observed, stop is not None), *filter(None, [change.delete])),
        forced=_forced(job, observed, now),
        workload_status=change.status,
        requeue_at=min(timers, default=None),
    )


def _run_folder_is_gone(job: Job, owner: Owner, observed: Observed) -> bool:
    claim = made_claim(job, owner)
    return job.spec.storage.ephemeral or (claim is not None and (claim in observed.deleting or not observed.has(claim)))


def _why_no_pod_may_run(job: Job, admission: Admission | None) -> str | None:
    if job.spec.suspend:
        return failure.SUSPENDED
    return failure.QUEUED_AGAIN if admission is not None and not admission.admitted else None


def _refused(admission: Admission | None) -> AttemptEnd | None:
    if admission is None or not admission.refused:
        return None
    return AttemptEnd("Failed", "FailedToStart", f"it cannot run where its queue admitted it: {admission.refused}")


def _asks_for_more(before: Job, job: Job) -> bool:
    return job.spec.training.iterations > before.spec.training.iterations


# --- what should be


def _plan(
    job_object: JobObject,
    job: Job,
    status: JobStatus,
    places: Mapping[Component, Place],
    observed: Observed,
    now: datetime,
) -> Plan:
    """Task app first; inference once its base model exists; the trainer when what it needs is ready."""
    owner, key, defaults = job_object.owner, attempts.current_key(job, observed), observed.rules.pod_defaults
    inference_exists = observed.has(Ref("Deployment", component_name(job.name, "inference")))
    inference_waits = readiness.inference_waits_for(job.spec, observed, inference_exists)
    trainer_waits, retry_at = _trainer_waits(job, status, observed, now)
    if key is None:  # pods carry its digest: they are decided about once it is made
        return Plan((), inference_waits, trainer_waits, retry_at)

    resources = job.spec.task_app.resources.model_dump(mode="json", by_alias=True, exclude_none=True)
    task_app = placed(task_app_deployment(job, owner, key, defaults), places.get("taskApp", Place()))
    workloads = [_kept(task_app, {"resources": resources, "key": key}, observed)]
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


def _needs_applying(manifest: Manifest, observed: Observed) -> bool:
    live = observed.objects.get(ref(manifest))
    if live is None:
        return True
    if manifest["kind"] in MADE_ONCE:
        return False
    annotations = live.get("metadata", {}).get("annotations", {})
    return annotations.get(HASH_ANNOTATION) != sealed_hash(manifest) or bool(drift.differences(manifest, live))


def _exporter(job_object: JobObject, job: Job, status: JobStatus, observed: Observed) -> tuple[Manifest, ...]:
    """The exporter, and what it mounts, until the copies are made."""
    owner = job_object.owner
    if status.result is None or status.result.export in (None, "Exported"):
        return ()
    policy, key = export_policy(job, owner), attempts.current_key(job, observed)
    needed = [
        secret(owner),
        config_map(job, owner),
        *([policy] if policy else []),
        *([export_job(job, status.attempt, owner, key, observed.rules.pod_defaults)] if key is not None else []),
    ]
    return tuple(sealed for sealed in map(seal, needed) if _needs_applying(sealed, observed))


# --- what should not be


def _deletions(job: Job, status: JobStatus, observed: Observed, all_pods: bool) -> tuple[Ref, ...]:
    """Trainers of other attempts, exporters of a former end; all pods of a job that is suspended or has no quota."""
    exporters = tuple(Ref("Job", name) for name in observed.exports)
    trainers = [
        Ref("Job", trainer_job_name(job.name, run.attempt))
        for run in observed.trainers
        if not run.deleting and (all_pods or run.attempt != status.attempt)
    ]
    return (*trainers, *exporters, *(_servers(job, observed) if all_pods else ()))


def _deletions_at_the_end(
    job: Job, owner: Owner, result: Result, observed: Observed, all_pods: bool
) -> tuple[Ref, ...]:
    """A trainer that has ended stays for its log, unless a sidecar of it still holds the node."""
    claim = results.claim_to_delete(job, owner, result, observed)
    exporters = [Ref("Job", name) for name in observed.exports if name != result.export_job]
    trainers = [
        Ref("Job", trainer_job_name(job.name, run.attempt))
        for run in observed.trainers
        if (run.outcome == "Active" or run.holds_node) and not run.deleting
    ]
    # Of a job that ended while a queue had taken its quota back, none may stay.
    keep = job.spec.lifecycle.cleanup_policy == "KeepAll" and not all_pods
    return (*trainers, *exporters, *(() if keep else _servers(job, observed)), *((claim,) if claim else ()))


def _servers(job: Job, observed: Observed) -> tuple[Ref, ...]:
    servers = (
        Ref("Deployment", component_name(job.name, "taskApp")),
        Ref("Deployment", component_name(job.name, "inference")),
    )
    return tuple(server for server in servers if observed.has(server))


def _forced(job: Job, observed: Observed, now: datetime) -> tuple[Ref, ...]:
    """Two trainers at once would write to one run folder: a pod is only given up where its node is known to be lost."""
    patience = timedelta(seconds=job.spec.lifecycle.node_lost_seconds)
    return tuple(Ref("Pod", pod.name) for pod in observed.stuck if pod.node_is_lost and now - pod.since >= patience)


def _what_a_person_must_do(pod: StuckPod) -> str:
    return (
        f"node {pod.node} has not confirmed since {stamp(pod.since)} that the previous trainer's pod {pod.name} ended. "
        f"Bring it back; if it is off for good, delete the node or taint it {OUT_OF_SERVICE}=nodeshutdown:NoExecute"
    )


# --- how it ends


def _missed_deadline(job: Job, status: JobStatus, now: datetime) -> AttemptEnd | None:
    nearest = next(iter(lifecycle.deadlines(job.spec, status)), None)
    if nearest is None or now < nearest.at:
        return None
    return AttemptEnd("Failed", nearest.reason, nearest.message)


def _finish(status: JobStatus, outcome: AttemptEnd, now: datetime) -> JobStatus:
    cause = outcome.message if outcome.type == "Failed" else None
    status = attempts.end(status, cause, counted=cause is not None, now=now)
    status = lifecycle.keep_time(status, stopped=True, now=now)
    return status.model_copy(update={"completion_time": stamp(now)})


# --- what to report


def _report(
    job_object: JobObject,
    job: Job,
    verdict: Verdict,
    status: JobStatus,
    observed: Observed,
    admission: Admission | None,
    outcome: AttemptEnd | None,
    plan: Plan,
    now: datetime,
) -> JobStatus:
    run = observed.trainer(status.attempt)
    views = (
        ComponentView("taskApp", observed.task_app),
        ComponentView("inference", observed.inference, plan.inference_waits),
        ComponentView(
            "trainer",
            run.state if run else ObservedComponent(),
            plan.trainer_waits,
            ended=run is not None and run.outcome != "Active",
        ),
    )
    kept = results.kept(job, job_object.owner, status, observed, finished=outcome is not None)
    exported = results.exported(status.result) if status.result else None
    found = conditions.findings(job.spec, status, verdict, observed, views, admission, outcome, kept, exported)
    timed = conditions.with_times(status.conditions, found, job_object.generation, now)
    # A trainer that still loads does not know where the run is.
    last = run.report if run is not None and run.outcome == "Succeeded" else None
    report = last or (observed.report if observed.report and observed.report.phase != "Starting" else None)
    return status.model_copy(
        update={
            "observed_generation": job_object.generation,
            "phase": conditions.phase(timed),
            "reason": conditions.why(timed, views, observed),
            "conditions": timed,
            "components": conditions.component_statuses(status, views),
            "progress": report.progress if report else status.progress,
            "policy": report.policy if report else status.policy,
            "accepted": accepted.text_of(job),
        }
    )


def _rejected(job_object: JobObject, previous: JobStatus, verdict: Verdict, now: datetime) -> JobStatus:
    """Nothing valid was ever accepted: say what is wrong and make nothing."""
    others = [
        conditions.Finding(old.type, old.status == "True", old.reason, old.message)
        for old in previous.conditions
        if old.type != "Accepted"
    ]
    found = [conditions.accepted(verdict), *others]
    timed = conditions.with_times(previous.conditions, found, job_object.generation, now)
    return previous.model_copy(
        update={
            "observed_generation": job_object.generation,
            "conditions": timed,
            "phase": conditions.phase(timed),
            "reason": verdict.message if not previous.finished else previous.reason,
        }
    )
