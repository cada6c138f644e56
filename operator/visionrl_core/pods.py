"""Pods, Deployments and Jobs as the API server holds them, reduced to what a decision depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from visionrl_core.clock import moment
from visionrl_core.manifests.common import ATTEMPT_LABEL, COMPONENT_LABEL
from visionrl_core.observed import ObservedComponent, TrainerRun

Body = Mapping[str, Any]

# Reasons of a container that is merely starting.
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
# Of a Job without a number: never the current one, so it is deleted.
UNKNOWN_ATTEMPT = -1
ENDED = frozenset({"Succeeded", "Failed"})
# Reason of a trainer whose pod is being deleted by someone else than us: policies.failure knows it as a disruption.
TERMINATED = "Terminated"


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod."""

    component: str
    created: str
    deleting: bool
    owner_uid: str
    """Of the ReplicaSet or Job that made it."""
    phase: str
    state: ObservedComponent
    address: str | None
    """IP, while the pod has one."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One Kubernetes Job."""

    attempt: int
    outcome: Literal["Active", "Succeeded", "Failed"]
    message: str
    """Of the condition with the outcome."""


def pod_view(body: Body) -> PodView:
    metadata, status = body["metadata"], body.get("status", {})
    owners = metadata.get("ownerReferences") or [{}]
    deleting = "deletionTimestamp" in metadata
    return PodView(
        component=metadata.get("labels", {}).get(COMPONENT_LABEL, ""),
        created=metadata["creationTimestamp"],
        deleting=deleting,
        owner_uid=owners[0].get("uid", ""),
        phase=status.get("phase", "Pending"),
        state=_state(body, status, deleting),
        address=status.get("podIP"),
    )


def run_view(body: Body) -> RunView:
    label = body["metadata"].get("labels", {}).get(ATTEMPT_LABEL, "")
    attempt = int(label) if label.isdecimal() else UNKNOWN_ATTEMPT
    for condition in body.get("status", {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            outcome: Literal["Succeeded", "Failed"] = "Succeeded" if condition["type"] == "Complete" else "Failed"
            return RunView(attempt, outcome, condition.get("message", ""))
    return RunView(attempt, "Active", "")


def replica_failure(body: Body) -> str:
    """Why a Deployment's pods could not be made, such as an exceeded quota."""
    for condition in body.get("status", {}).get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return str(condition.get("message", ""))
    return ""


def component_of(pods: Iterable[PodView], creation_failure: str = "") -> ObservedComponent:
    """The component that a Deployment's pods are: the newest one that is not being deleted, and how many exist."""
    found = sorted(pods, key=lambda pod: (not pod.deleting, pod.created))
    if not found:
        return (
            ObservedComponent(reason="FailedCreate", message=creation_failure)
            if creation_failure
            else ObservedComponent()
        )
    return _counted(found[-1].state, len(found))


def run_of(run: RunView, deleting: bool, pods: Iterable[PodView], creation_failure: str = "") -> TrainerRun:
    """One attempt. The result does not depend on the order in which events of Job and pod arrive."""
    found = sorted(pods, key=lambda pod: pod.created)
    state = _counted(found[-1].state, len(found)) if found else ObservedComponent(message=run.message)
    outcome = run.outcome
    if not found and outcome == "Active" and creation_failure:
        state = ObservedComponent(reason="FailedCreate", message=creation_failure)
    if outcome == "Failed" and found and not any(pod.deleting or pod.phase in ENDED for pod in found):
        outcome = "Active"  # the Job's failure came before the pod's: its exit code decides what follows
    taken = next((pod for pod in found if pod.deleting and pod.phase not in ENDED), None)
    if outcome == "Active" and not deleting and taken is not None:
        # Evicted, drained or deleted by hand. The Job would start another pod beside the one that is ending.
        outcome = "Failed"
        state = replace(taken.state, exit_reason=taken.state.exit_reason or TERMINATED, pods=len(found))
    return TrainerRun(run.attempt, outcome, deleting, state)


def _state(body: Body, status: Body, deleting: bool) -> ObservedComponent:
    """The state of one pod's component."""
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    container: Body = next(iter(status.get("containerStatuses") or ()), {})
    state, last = container.get("state", {}), container.get("lastState", {})
    ended = state.get("terminated") or last.get("terminated")
    reason, message = _why_not_ready(status, conditions, state)
    if ended and not message:
        message = ended.get("message", "")
    started = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    disrupted = conditions.get("DisruptionTarget", {})
    pod_reason = status.get("reason") or (disrupted.get("reason") if disrupted.get("status") == "True" else None)
    return ObservedComponent(
        ready=conditions.get("Ready", {}).get("status") == "True" and not deleting,
        pods=1,
        restarts=container.get("restartCount", 0),
        exit_code=ended.get("exitCode") if ended else None,
        exit_reason=pod_reason or (ended.get("reason", "") if ended else ""),
        reason="Terminating" if deleting else reason,
        message=message,
        node=body["spec"].get("nodeName"),
        started=_moment(started),
    )


def _why_not_ready(status: Body, conditions: Mapping[str, Body], state: Body) -> tuple[str, str]:
    """Reason and message of a pod that is not ready; empty where it is merely starting."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason") or "Unschedulable", scheduled.get("message", "")
    waiting = state.get("waiting")
    if waiting and waiting.get("reason") not in STARTING:
        return waiting.get("reason", ""), waiting.get("message", "")
    if status.get("phase") == "Failed" and status.get("reason"):
        return status["reason"], status.get("message", "")
    return "", ""


def _counted(state: ObservedComponent, pods: int) -> ObservedComponent:
    return state if state.pods == pods else replace(state, pods=pods)


def _moment(text: str | None) -> datetime | None:
    return moment(text) if text else None
