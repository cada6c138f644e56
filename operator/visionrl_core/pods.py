"""Pods, Deployments and Jobs as the API server holds them, reduced to what a decision depends on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from visionrl.status import TrainerReport
from visionrl_core.clock import moment
from visionrl_core.manifests.common import ATTEMPT_LABEL, COMPONENT_LABEL, KEY_ANNOTATION, OWNER_ANNOTATION
from visionrl_core.manifests.export import EXPORT
from visionrl_core.observed import ExportRun, ObservedComponent, TrainerRun
from visionrl_core.policies.failure import last_line
from visionrl_core.report import read_copies, read_report

Body = Mapping[str, Any]

# Reasons of a container that is merely starting.
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
# By which Kueue takes a Job for itself, also one that nobody gave it: a LocalQueue called "default" does so.
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Of a Job without a number: never the current one, so it is deleted.
UNKNOWN_ATTEMPT = -1
# Reason of a container that waits for its next start: what it failed with says more.
CRASHED = "CrashLoopBackOff"
ENDED = frozenset({"Succeeded", "Failed"})
BELOW_REQUEST = re.compile(r"resources\.requests: Invalid value: .*must be less than or equal to \S+ limit")
LIMITS_HINT = "the limit is of the job's podTemplate or of a LimitRange of the namespace: kubectl get limitrange"
# Reason of a container that ended with exit code 0.
COMPLETED = "Completed"
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
    ended: bool
    """The component's container has ended for good, whatever other containers of the pod do."""
    state: ObservedComponent
    address: str | None
    """IP, while the pod has one."""
    job_uid: str = ""
    """The job object that it belongs to; empty where nobody knows."""
    key: str = ""
    """Digest of the key that it was started with; empty where nobody knows."""
    grace_ends: str | None = None
    """When it should be gone, where it is being deleted."""
    report: TrainerReport | None = None
    """Of a trainer that completed: it left it as the container's termination message."""
    last_words: str = ""
    """Of an exporter that succeeded: the same."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One Kubernetes Job."""

    attempt: int
    outcome: Literal["Active", "Succeeded", "Failed"]
    message: str
    """Of the condition with the outcome."""
    key: str
    """Digest of the key in its pod template."""
    held_by: str = ""
    """Who suspended it: a queue, or somebody unknown. We never do."""
    part: str = "trainer"
    """Whose Job it is: the trainer's or the exporter's."""


def pod_view(body: Body) -> PodView:
    metadata, status = body["metadata"], body.get("status", {})
    owners = metadata.get("ownerReferences") or [{}]
    component = metadata.get("labels", {}).get(COMPONENT_LABEL, "")
    deleting = "deletionTimestamp" in metadata
    return PodView(
        component=component,
        created=metadata["creationTimestamp"],
        deleting=deleting,
        owner_uid=owners[0].get("uid", ""),
        phase=status.get("phase", "Pending"),
        ended=status.get("phase") in ENDED or _ended_for_good(body),
        state=_state(body, status, deleting),
        address=status.get("podIP"),
        job_uid=metadata.get("annotations", {}).get(OWNER_ANNOTATION, ""),
        key=metadata.get("annotations", {}).get(KEY_ANNOTATION, ""),
        grace_ends=metadata.get("deletionTimestamp"),
        report=_last_report(body) if component != EXPORT else None,
        last_words=_last_words(body) if component == EXPORT else "",
    )


def _ended_for_good(body: Body) -> bool:
    return body["spec"].get("restartPolicy") == "Never" and "terminated" in _own_container(body).get("state", {})


def _last_report(body: Body) -> TrainerReport | None:
    return read_report(_last_words(body).encode())


def _last_words(body: Body) -> str:
    end = _own_container(body).get("state", {}).get("terminated") or {}
    return str(end.get("message", "")) if end.get("exitCode") == 0 else ""


def run_view(body: Body) -> RunView:
    own_labels = body["metadata"].get("labels", {})
    label, part = own_labels.get(ATTEMPT_LABEL, ""), own_labels.get(COMPONENT_LABEL, "trainer")
    attempt = int(label) if label.isdecimal() else UNKNOWN_ATTEMPT
    template = body.get("spec", {}).get("template", {})
    key = template.get("metadata", {}).get("annotations", {}).get(KEY_ANNOTATION, "")
    queue = own_labels.get(QUEUE_LABEL)
    held_by = (f"queue {queue}" if queue else "somebody") if body.get("spec", {}).get("suspend") else ""
    for condition in body.get("status", {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            outcome: Literal["Succeeded", "Failed"] = "Succeeded" if condition["type"] == "Complete" else "Failed"
            return RunView(attempt, outcome, condition.get("message", ""), key, part=part)
    return RunView(attempt, "Active", "", key, held_by, part)


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
        return _not_made(creation_failure) if creation_failure else ObservedComponent()
    return _counted(found[-1].state, len(found))


def run_of(run: RunView, deleting: bool, pods: Iterable[PodView], creation_failure: str = "") -> TrainerRun:
    """One attempt. The result does not depend on the order in which events of Job and pod arrive."""
    found = sorted(pods, key=lambda pod: pod.created)
    state = _counted(found[-1].state, len(found)) if found else ObservedComponent(message=run.message)
    outcome = run.outcome
    if not found and outcome == "Active" and creation_failure:
        state = _not_made(creation_failure)
    elif not found and outcome == "Active" and run.held_by:
        message = f"its Job is suspended by {run.held_by}: exclude this namespace from that queue, or resume the Job"
        state = ObservedComponent(reason="Suspended", message=message)
    ended = next((pod for pod in found if pod.ended), None)
    if outcome == "Failed" and ended is not None and _completed(ended.state):
        outcome = "Succeeded"  # it is a sidecar that failed
    if outcome == "Failed" and found and ended is None and not any(pod.deleting for pod in found):
        outcome = "Active"  # the Job's failure came before the pod's: its exit code decides what follows
    if outcome == "Active" and not deleting and ended is not None:
        # Beside a sidecar that keeps running, the Job would stay active for ever.
        outcome = "Succeeded" if _completed(ended.state) else "Failed"
        state = _counted(ended.state, len(found))
    taken = next((pod for pod in found if pod.deleting and not pod.ended), None)
    if outcome == "Active" and not deleting and taken is not None:
        # Evicted, drained or deleted by hand. The Job would start another pod beside the one that is ending.
        outcome = "Failed"
        state = replace(taken.state, exit_reason=taken.state.exit_reason or TERMINATED, pods=len(found))
    report = found[-1].report if found else None
    return TrainerRun(run.attempt, outcome, deleting, state, report, run.key, _hold_a_node(found))


def _hold_a_node(pods: Sequence[PodView]) -> bool:
    return any(pod.phase not in ENDED for pod in pods)


def _not_made(why: str) -> ObservedComponent:
    """A component whose pods the API server refuses. It names a quota, and the bound of a LimitRange, but not whose
    limit is below what the job requests: a LimitRange gives limits to containers that have none."""
    hint = f" ({LIMITS_HINT})" if BELOW_REQUEST.search(why) else ""
    return ObservedComponent(reason="FailedCreate", message=f"{why}{hint}")


def _completed(state: ObservedComponent) -> bool:
    """The component's own container did its work, whatever became of others in its pod. A pod that was evicted did not,
    even where its container ended in peace."""
    return state.exit_code == 0 and state.exit_reason in ("", COMPLETED)


def export_of(run: RunView, pods: Iterable[PodView]) -> ExportRun:
    """The Job that copies the trained policy. Its container is started again until it succeeds; beside a sidecar that
    keeps running, the Job would stay active for ever."""
    found = sorted(pods, key=lambda pod: pod.created)
    newest = found[-1] if found else None
    words = newest.last_words if newest else ""
    outcome = "Succeeded" if words else run.outcome
    version, copies = read_copies(words.encode())
    message = ""
    if newest is not None:
        reason = "" if newest.state.reason == CRASHED else newest.state.reason
        message = ": ".join(filter(None, (reason, last_line(newest.state.log or newest.state.message))))
    return ExportRun(outcome, message or run.message, version, copies, _hold_a_node(found))


def _state(body: Body, status: Body, deleting: bool) -> ObservedComponent:
    """The state of one pod's component. Its container is found by name: admission webhooks put sidecars anywhere."""
    metadata = body["metadata"]
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    container = _own_container(body)
    state, last = container.get("state", {}), container.get("lastState", {})
    end = state.get("terminated") or last.get("terminated")
    reason, message = _why_not_ready(body, conditions)
    log = end.get("message", "") if end and end.get("exitCode") != 0 else ""
    started = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    disrupted = conditions.get("DisruptionTarget", {})
    pod_reason = status.get("reason") or (disrupted.get("reason") if disrupted.get("status") == "True" else None)
    return ObservedComponent(
        ready=conditions.get("Ready", {}).get("status") == "True" and not deleting,
        pods=1,
        restarts=container.get("restartCount", 0),
        exit_code=end.get("exitCode") if end else None,
        exit_reason=pod_reason or (end.get("reason", "") if end else ""),
        reason="Terminating" if deleting else reason,
        message=message or log,
        log=log,
        node=body["spec"].get("nodeName"),
        started=_moment(started),
        instance=metadata.get("uid", ""),
        created=_moment(metadata["creationTimestamp"]),
        # A container that is being deleted ends on request.
        ends=0 if deleting else _ends(status, container),
        ended=_moment(end.get("finishedAt")) if end else None,
    )


def _own_container(body: Body) -> Body:
    """The status of the component's container, which has the component's name."""
    name = body["metadata"].get("labels", {}).get(COMPONENT_LABEL)
    containers = body.get("status", {}).get("containerStatuses") or ()
    return next((container for container in containers if container.get("name") == name), {})


def _ends(status: Body, container: Body) -> int:
    """The kubelet's count belongs to the newest container; until the next one runs, that one has ended, too."""
    restarts: int = container.get("restartCount", 0)
    ended = container.get("state", {}).get("terminated") or (
        container.get("state", {}).get("waiting") and container.get("lastState", {}).get("terminated")
    )
    return max(restarts + bool(ended), int(status.get("phase") == "Failed"))


def _why_not_ready(body: Body, conditions: Mapping[str, Body]) -> tuple[str, str]:
    """Reason and message of a pod that is not ready; empty where it is merely starting."""
    status, own = body.get("status", {}), _own_container(body)
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason") or "Unschedulable", scheduled.get("message", "")
    if status.get("phase") == "Failed" and status.get("reason"):
        return status["reason"], status.get("message", "")
    for container in status.get("initContainerStatuses") or ():
        if problem := _problem(container):
            return problem[0], f"init container {container['name']}: {problem[1]}".rstrip(": ")
    waiting = own.get("state", {}).get("waiting")
    if waiting and waiting.get("reason") not in STARTING:
        return waiting.get("reason", ""), waiting.get("message", "")
    for container in status.get("containerStatuses") or ():
        if container is not own and (problem := _problem(container)):
            return problem[0], f"container {container.get('name', '')}: {problem[1]}".rstrip(": ")
    return "", ""


def _problem(container: Body) -> tuple[str, str] | None:
    """Reason and message of another container than the component's own, where it is in the way."""
    state = container.get("state", {})
    waiting, terminated = state.get("waiting"), state.get("terminated")
    if waiting and waiting.get("reason") not in STARTING:
        return waiting.get("reason", ""), waiting.get("message", "")
    if terminated and terminated.get("exitCode"):
        return terminated.get("reason", "Error"), f"exit code {terminated['exitCode']}"
    return None


def _counted(state: ObservedComponent, pods: int) -> ObservedComponent:
    return state if state.pods == pods else replace(state, pods=pods)


def _moment(text: str | None) -> datetime | None:
    return moment(text) if text else None
