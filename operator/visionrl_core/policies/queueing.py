"""A job in a Kueue queue: whether its pods may run, and what to write about it into its Workload.

The order that Kueue expects of whoever starts and stops the pods (read in its versions 0.10 to 0.19):

1. The Workload is made while no pod runs. No pod is made before it is *Admitted* and not *Evicted*.
2. Pods go where the assigned flavors say.
3. *PodsReady* is always written: whether Kueue waits for it (``waitForPodsReady``) nobody else can see.
4. *Evicted*: Kueue keeps the reservation. The pods are deleted; when the last one is gone, one write gives the quota
   back and says whether the job stands in line again at once (*Requeued*).
5. The quota of an inactive, finished or deleted Workload is given to others at once: the pods go first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from visionrl.checks import exports_base, runs_inference, runs_task_app
from visionrl.job import Component, Job, JobSpec
from visionrl.status import JobStatus
from visionrl_core import attempts
from visionrl_core.clock import stamp
from visionrl_core.kueue import Assignment, Queue, WorkloadView
from visionrl_core.manifests.common import COMPONENTS, SUFFIXES, Manifest, Owner, Ref
from visionrl_core.manifests.queue import Place, conflict, made_for, pod_makers, workload, workload_name
from visionrl_core.observed import Observed, ObservedComponent

# Evictions after which a job stands in line again at once; after others Kueue says when.
REQUEUED_AT_ONCE = ("Preempted", "NodeFailures")
MAX_MESSAGE = 1000
COMPONENT_OF: dict[str, Component] = {SUFFIXES[component]: component for component in COMPONENTS}


@dataclass(frozen=True)
class Admission:
    """What the queue says about a job: reason and message of its condition *Admitted*."""

    admitted: bool
    reason: str
    message: str
    places: Mapping[Component, Place] | None = None
    """Where its pods may run; None where that is not known."""
    refused: str = ""
    """Why it can never start."""


@dataclass(frozen=True)
class WorkloadChange:
    """What becomes of a job's Workload; nothing where all is None."""

    make: Manifest | None = None
    delete: Ref | None = None
    status: Mapping[str, Any] | None = None
    """To be merged into its status."""


@dataclass(frozen=True)
class _Condition:
    type: str
    true: bool
    reason: str
    message: str


# --- whether pods may run


def admission(job: Job, owner: Owner, observed: Observed) -> Admission | None:
    """None for a job that waits in no queue."""
    queue = observed.queue
    if job.spec.queue_name is None or queue is None:
        return None
    if job.spec.suspend:
        return Admission(False, "Suspended", "the job is suspended")
    if not queue.api_version:
        return Admission(False, "NoKueue", f"waits for queue {job.spec.queue_name}: the operator finds no Kueue")
    found = queue.workload
    if found is None:
        return Admission(False, "Pending", _before_it_exists(job.spec, queue, observed))
    if found.deleting or found.true("Finished") or found.made_for != made_for(job):
        return Admission(False, "Requeued", f"goes to queue {job.spec.queue_name} again")
    if not found.active or (found.true("Evicted") and found.reserved):
        return _evicted(found, observed)
    if not found.true("Admitted") or found.assignments is None:
        return Admission(False, *_words(job.spec, found))
    return _admitted(job, owner, queue, found, observed)


def _before_it_exists(spec: JobSpec, queue: Queue, observed: Observed) -> str:
    if holds_quota(observed):
        return f"waits for queue {spec.queue_name} until its pods have ended"
    if spec.queue_priority_class is not None and queue.priority is None:
        return f"WorkloadPriorityClass {spec.queue_priority_class} does not exist"
    return f"waits for queue {spec.queue_name}"


def _evicted(found: WorkloadView, observed: Observed) -> Admission:
    condition = found.conditions.get("Evicted", {})
    known = condition.get("status") == "True"
    reason = condition.get("reason", "") if known else "Deactivated"
    message = condition.get("message", "") if known else "the Workload was deactivated"
    ending = "; pods are ending" if holds_quota(observed) else ""
    return Admission(False, reason, f"{message[:MAX_MESSAGE]}{ending}")


def _words(spec: JobSpec, found: WorkloadView) -> tuple[str, str]:
    """Kueue's own about a job that waits."""
    if found.true("QuotaReserved"):
        checks = "; ".join(f"{name}{f': {message}' if message else ''}" for name, message in found.pending_checks)
        return "AdmissionChecks", f"waits for admission checks {checks}"[:MAX_MESSAGE]
    condition = found.conditions.get("QuotaReserved", {})
    message = condition.get("message") or f"waits for queue {spec.queue_name}"
    requeued = found.conditions.get("Requeued", {})
    later = requeued.get("status") == "False" and found.requeue_at
    return condition.get("reason") or "Pending", f"{message[:MAX_MESSAGE]}{f'; again at {later}' if later else ''}"


def _admitted(job: Job, owner: Owner, queue: Queue, found: WorkloadView, observed: Observed) -> Admission:
    assignments = found.assignments or ()
    missing = [name for name in found.flavors if name not in queue.flavors]
    if missing:
        return Admission(True, "FlavorMissing", f"ResourceFlavor {missing[0]} cannot be read")
    places = {
        COMPONENT_OF[each.pod_set]: _place(each, queue, found) for each in assignments if each.pod_set in COMPONENT_OF
    }
    refused = ""
    if not holds_quota(observed):  # what runs already stays where it is
        defaults = observed.rules.pod_defaults
        made = pod_makers(job, owner, defaults)
        wrong = (conflict(pods, places.get(name, Place()), defaults) for name, pods in made.items())
        refused = next(filter(None, wrong), "") or _topology(found)
    return Admission(True, "Admitted", f"by queue {job.spec.queue_name}{_shown(found)}", places, refused)


def _place(assigned: Assignment, queue: Queue, found: WorkloadView) -> Place:
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    node_selector: dict[str, str] = {}
    tolerations: list[Mapping[str, Any]] = []
    for name in assigned.flavors:
        node_selector |= queue.flavors[name].node_labels
        tolerations += queue.flavors[name].tolerations
    for update in found.updates:
        if update.get("name") == assigned.pod_set:
            labels |= update.get("labels") or {}
            annotations |= update.get("annotations") or {}
            node_selector |= update.get("nodeSelector") or {}
            tolerations += update.get("tolerations") or ()
    return Place(node_selector, tuple(tolerations), labels, annotations)


def _topology(found: WorkloadView) -> str:
    chosen = any(each.topology for each in found.assignments or ())
    return "its flavors choose nodes by topology (topologyName), which the operator does not support" if chosen else ""


def _shown(found: WorkloadView) -> str:
    return f" ({', '.join(found.flavors)})" if found.flavors else ""


def holds_quota(observed: Observed) -> bool:
    """A pod of the job may still take what its quota is for."""
    servers = observed.task_app.pods + observed.inference.pods
    trainers = any(run.outcome == "Active" or run.holds_node for run in observed.trainers)
    return servers > 0 or trainers or observed.orphaned_trainer_pods > 0 or observed.has_deployments


# --- what to write about it


def workload_change(
    job: Job,
    owner: Owner,
    status: JobStatus,
    observed: Observed,
    verdict: Admission | None,
    succeeded: bool | None,
    now: datetime,
) -> WorkloadChange:
    """``succeeded`` is None while the job has not ended."""
    queue = observed.queue
    if verdict is None or queue is None or not queue.api_version:
        return WorkloadChange()
    found, holding = queue.workload, holds_quota(observed)
    target = Ref("Workload", workload_name(job.name))
    if found is None:
        wanted = succeeded is None and not job.spec.suspend and not holding
        known = job.spec.queue_priority_class is None or queue.priority is not None
        if not (wanted and known):
            return WorkloadChange()
        defaults = observed.rules.pod_defaults
        return WorkloadChange(make=workload(job, owner, queue.api_version, queue.priority, defaults))
    if found.deleting:
        return WorkloadChange()
    if succeeded is not None:
        ended = not holding and not found.true("Finished")
        return WorkloadChange(status=_finished(found, succeeded, verdict, now) if ended else None)
    if found.true("Finished") or found.made_for != made_for(job):
        return WorkloadChange(delete=None if holding else target)
    if job.spec.suspend:
        # A Workload that somebody deactivated stays: a new one would be active.
        return WorkloadChange(delete=target if found.active and not holding else None)
    if found.true("Evicted") and found.reserved:
        return WorkloadChange(status=None if holding else _released(found, now))
    if not verdict.admitted:
        return WorkloadChange()
    return WorkloadChange(status=_with(found, [_pods_ready(job.spec, status, observed, found)], now))


def _finished(found: WorkloadView, succeeded: bool, verdict: Admission, now: datetime) -> Mapping[str, Any] | None:
    reason = "Succeeded" if succeeded else "FailedToStart" if verdict.refused else "Failed"
    return _with(found, [_Condition("Finished", True, reason, verdict.refused or f"the job has {reason.lower()}")], now)


def _released(found: WorkloadView, now: datetime) -> Mapping[str, Any] | None:
    """The quota is given back after an eviction, in one write."""
    evicted = found.conditions["Evicted"]
    reason, message = evicted.get("reason", ""), evicted.get("message", "")
    conditions = [
        _Condition("QuotaReserved", False, "Pending", message),
        _Condition("Requeued", reason in REQUEUED_AT_ONCE, reason, message),
    ]
    if "Admitted" in found.conditions:
        conditions.append(_Condition("Admitted", False, "NoReservation", "the job has no quota"))
    if "PodsReady" in found.conditions:
        conditions.append(_Condition("PodsReady", False, "WaitForStart", "no pod runs"))
    return {**(_with(found, conditions, now) or {}), "admission": None}


def _pods_ready(spec: JobSpec, status: JobStatus, observed: Observed, found: WorkloadView) -> _Condition:
    """Components start in stages: the job is ready once the first stage is, and no longer once a component that has
    been ready is not."""
    before = found.conditions.get("PodsReady", {})
    started = before.get("status") == "True" or before.get("reason") == "WaitForRecovery"
    awaited = _once_ready(spec, status, observed) if started else _existing(observed)
    if awaited and all(state.ready for state in awaited):
        recovered = before.get("reason") in ("WaitForRecovery", "Recovered")
        return _Condition("PodsReady", True, "Recovered" if recovered else "Started", "the pods are ready")
    if started:
        return _Condition("PodsReady", False, "WaitForRecovery", "a component is not ready any more")
    return _Condition("PodsReady", False, "WaitForStart", "the first components are starting")


def _existing(observed: Observed) -> list[ObservedComponent]:
    states = (observed.task_app, observed.inference, *(run.state for run in observed.trainers))
    return [state for state in states if state.pods]


def _once_ready(spec: JobSpec, status: JobStatus, observed: Observed) -> list[ObservedComponent]:
    """The components of the stages that are over."""
    states = [observed.task_app] if runs_task_app(spec) else []
    serves = not exports_base(spec) or (
        observed.report is not None and observed.report.phase in ("Training", "Evaluating")
    )
    if runs_inference(spec) and serves:
        states.append(observed.inference)
    if attempts.live(status) or attempts.restarting(status):
        run = observed.trainer(status.attempt)
        states.append(run.state if run is not None else ObservedComponent())
    return states


def _with(found: WorkloadView, changed: Sequence[_Condition], now: datetime) -> Mapping[str, Any] | None:
    """The Workload's conditions with some changed; None where they say so already."""
    conditions = dict(found.conditions)
    for new in changed:
        old, status = conditions.get(new.type, {}), "True" if new.true else "False"
        if (old.get("status"), old.get("reason")) == (status, new.reason):
            continue
        moved = old.get("status") != status
        conditions[new.type] = {
            "type": new.type,
            "status": status,
            "reason": new.reason,
            "message": new.message[:MAX_MESSAGE],
            "lastTransitionTime": stamp(now) if moved else old["lastTransitionTime"],
            "observedGeneration": found.generation,
        }
    return {"conditions": list(conditions.values())} if conditions != found.conditions else None
