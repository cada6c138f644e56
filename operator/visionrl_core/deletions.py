"""What should not exist any more of a job, and must be deleted."""

from __future__ import annotations

from datetime import datetime, timedelta

from visionrl.job import Job
from visionrl.status import JobStatus, Result
from visionrl_core.manifests.common import Owner, Ref, component_name, trainer_job_name
from visionrl_core.observed import Observed
from visionrl_core.policies import results


def while_it_runs(job: Job, status: JobStatus, observed: Observed, all_pods: bool) -> tuple[Ref, ...]:
    """Trainers of other attempts, exporters of a former end; all pods of a job that is suspended or has no quota."""
    exporters = tuple(Ref("Job", name) for name in observed.exports)
    trainers = [
        Ref("Job", trainer_job_name(job.name, run.attempt))
        for run in observed.trainers
        if not run.deleting and (all_pods or run.attempt != status.attempt)
    ]
    return (*trainers, *exporters, *(_servers(job, observed) if all_pods else ()))


def at_the_end(job: Job, owner: Owner, result: Result, observed: Observed, all_pods: bool) -> tuple[Ref, ...]:
    """Trainers and exporters that have ended stay for their logs, unless a sidecar of them still holds the node."""
    claim = results.claim_to_delete(job, owner, result, observed)
    exporters = [
        ref
        for ref, run in ((Ref("Job", name), run) for name, run in observed.exports.items())
        if ref not in observed.deleting
        and (ref.name != result.export_job or (result.export == "Exported" and run.holds_node))
    ]
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


def given_up(job: Job, observed: Observed, now: datetime) -> tuple[Ref, ...]:
    """Two trainers at once would write to one run folder: a pod is only given up where its node is known to be lost."""
    patience = timedelta(seconds=job.spec.lifecycle.node_lost_seconds)
    return tuple(Ref("Pod", pod.name) for pod in observed.stuck if pod.node_is_lost and now - pod.since >= patience)
