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

from visionrl.job import Job
from visionrl.status import JobStatus
from visionrl_core import accepted, attempts, conditions, deletions, desired, reporting
from visionrl_core.attempts import AttemptEnd
from visionrl_core.clock import stamp
from visionrl_core.desired import Plan
from visionrl_core.manifests import base_manifests
from visionrl_core.manifests.common import Manifest, Ref, seal
from visionrl_core.observed import JobObject, Observed
from visionrl_core.policies import failure, ledger, lifecycle, queueing, results, volumes
from visionrl_core.policies.queueing import Admission
from visionrl_core.policies.validation import Verdict, validate

RUN_FOLDER_GONE = (
    "spec.training.iterations cannot be raised: the job is complete and its run folder is gone "
    "(spec.storage.ephemeral, spec.storage.retention.whenFinished, or a claim that was deleted). Start a new job"
)


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


def decide(job_object: JobObject, previous: JobStatus, observed: Observed, now: datetime) -> DesiredState:
    """Decide about one job. ``previous`` is the status as it was last written."""
    before = accepted.job_of(previous.accepted) or observed.accepted
    verdict = validate(job_object.document, before, observed.rules)
    if before is None and verdict.job is not None:
        conflict = volumes.cache_conflict(verdict.job.spec, observed.cache_access)
        verdict = Verdict(None, False, "CacheNotShared", conflict) if conflict else verdict
    if verdict.job is None:
        return DesiredState(reporting.rejected(job_object, previous, verdict, now))
    job, status, outcome = verdict.job, previous, conditions.outcome_of(previous)
    if before is not None and outcome is not None and outcome.type == "Complete" and _asks_for_more(before, job):
        if results.run_folder_is_gone(job, job_object.owner, observed):
            job, verdict = before, Verdict(before, False, "RunFolderGone", RUN_FOLDER_GONE)
        else:
            forgiven = ledger.forgiven(observed.servers, job.spec.failure_policy, now)
            status, outcome = attempts.reopened(previous, forgiven), None
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
        result = results.result_of(job, owner, status, observed, outcome.type == "Complete")
        status = attempts.with_log_of_hung_trainer(status.model_copy(update={"result": result}), observed)
        # Deleting the object would end its exporter, too.
        expires = lifecycle.expiry(job.spec.lifecycle, status) if result.export != "Exporting" else None
        return DesiredState(
            status=reporting.report(job_object, job, verdict, status, observed, admission, outcome, Plan(), now),
            manifests=desired.exporter(job, owner, status, observed),
            deletions=deletions.at_the_end(job, owner, result, observed, stop is not None),
            workload_status=change.status,
            requeue_at=expires,
            delete_job=expires is not None and expires <= now,
        )

    places = admission.places if admission is not None else {}
    plan = Plan()
    if stop is None and places is not None:
        plan = desired.plan(job, owner, status, places, observed, now)
    wanted = [*base_manifests(job, owner, scraped_by=observed.rules.scraped_by), *plan.workloads]
    wanted += [seal(change.make)] if change.make is not None else []
    timers = [deadline.at for deadline in lifecycle.deadlines(job.spec, status)]
    timers += [plan.retry_at] if plan.retry_at else []
    if attempts.live(status) is not None:
        timers.append(now + timedelta(seconds=job.spec.lifecycle.progress_deadline_seconds) - observed.idle)
    return DesiredState(
        status=reporting.report(job_object, job, verdict, status, observed, admission, None, plan, now),
        manifests=tuple(manifest for manifest in wanted if desired.needs_applying(manifest, observed)),
        deletions=(*deletions.while_it_runs(job, status, observed, stop is not None), *filter(None, [change.delete])),
        forced=deletions.given_up(job, observed, now),
        workload_status=change.status,
        requeue_at=min(timers, default=None),
    )


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
