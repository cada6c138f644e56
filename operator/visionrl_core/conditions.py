"""The status as others read it: conditions, phase and one line that says why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from visionrl.job import Component, JobSpec
from visionrl.status import ComponentStatus, Condition, ConditionType, JobStatus, Phase
from visionrl_core.attempts import AttemptEnd, restarting
from visionrl_core.clock import stamp
from visionrl_core.observed import Observed, ObservedComponent
from visionrl_core.policies.failure import last_line
from visionrl_core.policies.queueing import Admission
from visionrl_core.policies.readiness import Waiting
from visionrl_core.policies.validation import Verdict

# Reasons of a pod that no node has taken yet, or that the API server does not even take.
NOT_SCHEDULED = ("FailedCreate", "SchedulingGated", "Unschedulable")

MAX_MESSAGE = 1000
MAX_REASON = 200


@dataclass(frozen=True)
class Finding:
    """A condition before it has times."""

    type: ConditionType
    true: bool
    reason: str
    message: str = ""


@dataclass(frozen=True)
class ComponentView:
    """A component and what keeps it from starting."""

    component: Component
    state: ObservedComponent
    waiting: Waiting | None = None
    ended: bool = False
    """The container ended and is not started again."""

    @property
    def reason(self) -> str:
        if self.state.ready:
            return "Ready"
        if self.state.reason:
            return self.state.reason
        if self.ended:
            return "Completed" if self.state.exit_code == 0 else self.state.exit_reason or "Error"
        if self.state.pods:
            return "Starting"
        return self.waiting.reason if self.waiting else "NotCreated"

    @property
    def message(self) -> str:
        if self.state.ready or (self.ended and self.state.exit_code == 0):
            return ""
        if self.state.message:
            return last_line(self.state.message)
        return self.waiting.message if self.waiting and not self.state.pods else ""


def with_times(
    previous: Sequence[Condition], findings: Sequence[Finding], generation: int, now: datetime
) -> list[Condition]:
    """Conditions whose transition time is that of the last change of their status."""
    before = {condition.type: condition for condition in previous}
    conditions = []
    for finding in findings:
        status: Literal["True", "False"] = "True" if finding.true else "False"
        old = before.get(finding.type)
        changed = old is None or old.status != status
        conditions.append(
            Condition(
                type=finding.type,
                status=status,
                reason=_word(finding.reason),
                message=finding.message,
                last_transition_time=stamp(now) if old is None or changed else old.last_transition_time,
                observed_generation=generation,
            )
        )
    return conditions


def _word(reason: str) -> str:
    """A reason that ``metav1.Condition`` allows: those of pods may hold other characters (``OutOfnvidia.com/gpu``)."""
    word = re.sub(r"[^A-Za-z0-9_,:]", "_", reason).strip("_,:")
    return word[:MAX_REASON].rstrip(",:") if word[:1].isalpha() else f"Reason_{word}"[:MAX_REASON].rstrip("_,:")


def accepted(verdict: Verdict) -> Finding:
    return Finding("Accepted", verdict.accepted, verdict.reason, verdict.message)


def findings(
    spec: JobSpec,
    status: JobStatus,
    verdict: Verdict,
    observed: Observed,
    views: Sequence[ComponentView],
    admission: Admission | None,
    outcome: AttemptEnd | None,
    kept: Finding,
    exported: Finding | None,
) -> list[Finding]:
    """Every condition that applies, in the order in which a job passes them."""
    task_app, inference, trainer = views
    found = [accepted(verdict)]
    if admission is not None:
        found.append(_admitted(status, admission, ended=outcome is not None))
    found += [
        Finding("TaskAppReady", task_app.state.ready, task_app.reason, task_app.message),
        Finding("InferenceReady", inference.state.ready, inference.reason, inference.message),
        _trainer_running(status, trainer, observed, ended=outcome is not None),
        kept,
    ]
    if observed.contested:
        shown = "; ".join(f"{name}: {what}" for name, what in sorted(observed.contested.items()))
        found.append(Finding("Drifted", True, "RepairsDoNotStick", shown[:MAX_MESSAGE]))
    elif status.condition("Drifted"):
        found.append(Finding("Drifted", False, "Repaired"))
    if spec.suspend and outcome is None:
        states = [*(view.state for view in views), *(run.state for run in observed.trainers)]  # of former attempts, too
        ending = any(state.pods for state in states) or observed.orphaned_trainer_pods > 0
        found.append(Finding("Suspended", True, "Suspended", "pods are ending" if ending else ""))
    elif status.condition("Suspended"):
        found.append(Finding("Suspended", False, "Resumed"))
    if outcome is not None:
        found.append(Finding(outcome.type, True, outcome.reason, outcome.message))
    return [*found, exported] if exported is not None else found


def outcome_of(status: JobStatus) -> AttemptEnd | None:
    """The end, where the status already records one."""
    complete, failed = status.condition("Complete"), status.condition("Failed")
    if complete is not None and complete.status == "True":
        return AttemptEnd("Complete", complete.reason, complete.message)
    if failed is not None and failed.status == "True":
        return AttemptEnd("Failed", failed.reason, failed.message)
    return None


def phase(conditions: Sequence[Condition]) -> Phase:
    """One word for the conditions."""
    true = {condition.type for condition in conditions if condition.status == "True"}
    reasons = {condition.type: condition.reason for condition in conditions}
    if "Failed" in true:
        return "Failed"
    if "Complete" in true:
        return "Complete"
    if "Suspended" in true:
        return "Suspended"
    if "Admitted" in reasons and "Admitted" not in true:
        return "Queued"
    if "TrainerRunning" in true:
        return "WarmStart" if reasons["TrainerRunning"] == "WarmStart" else "Running"
    if reasons.get("TrainerRunning") == "Restarting":
        return "Restarting"
    waits = {reasons.get("TaskAppReady"), reasons.get("InferenceReady"), reasons.get("TrainerRunning")}
    never_started = reasons.get("TaskAppReady", "NotCreated") == "NotCreated"
    return "Pending" if never_started or waits.intersection(NOT_SCHEDULED) else "Starting"


def why(conditions: Sequence[Condition], views: Sequence[ComponentView], observed: Observed) -> str:
    """Why the job is where it is, in one line."""
    by_type = {condition.type: condition for condition in conditions}
    for end in ("Failed", "Complete"):
        if end in by_type:
            return "; ".join(filter(None, (by_type[end].message, _copying(by_type.get("Exported")))))
    if "Suspended" in by_type and by_type["Suspended"].status == "True":
        return by_type["Suspended"].message or "suspended"
    if by_type["Accepted"].status == "False":
        return by_type["Accepted"].message
    if "Admitted" in by_type and by_type["Admitted"].reason != "Admitted":
        return by_type["Admitted"].message
    if by_type["TrainerRunning"].reason == "Restarting":
        return by_type["TrainerRunning"].message
    for view in views:
        if not view.state.ready and (view.state.pods or view.state.reason):
            if view.reason == "Starting":
                return f"{view.component} is starting"
            return f"{view.component}: {view.reason}{f' ({view.message})' if view.message else ''}"
    return observed.report.message if observed.report else ""


def _copying(exported: Condition | None) -> str:
    if exported is None or exported.status == "True":
        return ""
    return ": ".join(filter(None, (exported.reason, exported.message)))


def component_statuses(status: JobStatus, views: Sequence[ComponentView]) -> list[ComponentStatus]:
    return [
        ComponentStatus(
            name=view.component,
            ready=view.state.ready,
            restarts=status.attempt if view.component == "trainer" else view.state.restarts,
            node=view.state.node,
            message="" if view.state.ready else ": ".join(filter(None, (view.reason, view.message))),
        )
        for view in views
    ]


def _admitted(status: JobStatus, admission: Admission, ended: bool) -> Finding:
    last = status.condition("Admitted")
    if ended and last is not None:
        return Finding("Admitted", last.status == "True", last.reason, last.message)
    return Finding("Admitted", admission.admitted, admission.reason, admission.message)


def _trainer_running(status: JobStatus, trainer: ComponentView, observed: Observed, ended: bool) -> Finding:
    report = observed.report
    if ended:
        return Finding("TrainerRunning", False, "Finished")
    if trainer.state.ready or (report is not None and trainer.state.started is not None):
        return Finding("TrainerRunning", True, report.phase if report else "Running", report.message if report else "")
    failed = restarting(status)
    if failed is not None and not trainer.state.reason:
        waits = f"; {trainer.message}" if trainer.message else ""
        return Finding("TrainerRunning", False, "Restarting", f"attempt {status.attempt} follows {failed.cause}{waits}")
    return Finding("TrainerRunning", False, trainer.reason, trainer.message)
