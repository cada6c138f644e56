"""Events of a job: what changed between two statuses that a person wants to know. They are posted after the second
status is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from visionrl.job import API_VERSION, KIND
from visionrl.status import ConditionType, JobStatus
from visionrl_core.clock import stamp
from visionrl_core.kinds import FIELD_MANAGER
from visionrl_core.manifests.common import Manifest, Owner
from visionrl_core.policies.failure import PLANNED_CAUSES

MAX_MESSAGE = 1024
# Reasons of the condition ResultKept that are events, too; that of an ephemeral run folder is a warning of the job.
TOLD = ("ClaimDeleting", "ClaimLost")


@dataclass(frozen=True)
class JobEvent:
    """One event. ``occasion`` distinguishes it from others with the same reason: posted twice, it is one object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    occasion: str = ""


def events_between(previous: JobStatus, status: JobStatus) -> Iterator[JobEvent]:
    """The events that lead from one status to the next."""
    accepted = status.condition("Accepted")
    before = previous.condition("Accepted")
    if accepted and accepted.message and (before is None or before.message != accepted.message):
        yield JobEvent("Warning", accepted.reason, accepted.message, f"{accepted.observed_generation}")
    if status.attempt > previous.attempt and status.attempts:
        last = status.attempts[-1]
        if last.cause not in PLANNED_CAUSES:
            yield JobEvent(
                "Warning", "Restarted", f"attempt {status.attempt} follows {last.cause}", f"{status.attempt}"
            )
    kept, before = status.condition("ResultKept"), previous.condition("ResultKept")
    if kept and kept.reason in TOLD and (before is None or before.reason != kept.reason):
        yield JobEvent("Warning", kept.reason, kept.message, f"{status.attempt} {kept.last_transition_time}")
    if _turned(previous, status, "TrainerRunning"):
        nodes = sorted({component.node for component in status.components if component.node})
        where = f" on {', '.join(nodes)}" if nodes else ""
        yield JobEvent("Normal", "Ready", f"attempt {status.attempt} runs{where}", f"{status.attempt}")
    if _turned(previous, status, "Admitted") and (admitted := status.condition("Admitted")):
        occasion = f"{status.attempt} {_since(status, 'Admitted')}"
        yield JobEvent("Normal", "Admitted", admitted.message, occasion)
    lost = status.condition("Admitted") if previous.condition("Admitted") else None
    if _turned(previous, status, "Admitted", "False") and lost is not None and lost.reason != "Suspended":
        yield JobEvent("Warning", "QuotaLost", f"{lost.reason}: {lost.message}", _since(status, "Admitted"))
    if previous.finished and not status.finished:
        yield JobEvent("Normal", "Reopened", "more iterations are asked for", f"{status.attempt}")
    if _turned(previous, status, "Suspended"):
        yield JobEvent("Normal", "Suspended", "pods are deleted; training continues after resuming", _since(status))
    if _turned(previous, status, "Suspended", "False") and previous.condition("Suspended"):
        yield JobEvent("Normal", "Resumed", "no longer suspended", _since(status))
    if _turned(previous, status, "Complete"):
        yield JobEvent("Normal", "Completed", status.reason)
    if _turned(previous, status, "Failed"):
        yield JobEvent("Warning", "Failed", status.reason)
    exported, before = status.condition("Exported"), previous.condition("Exported")
    if exported and (before is None or before.reason != exported.reason) and exported.reason != "Exporting":
        kind: Literal["Normal", "Warning"] = "Normal" if exported.status == "True" else "Warning"
        yield JobEvent(kind, exported.reason, exported.message, exported.last_transition_time)


def event_manifest(owner: Owner, event: JobEvent, now: datetime) -> Manifest:
    """The Event object. Its name depends on the content, not on the time."""
    identity = "\n".join((owner.uid, event.reason, event.occasion))
    suffix = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name}.{suffix}", "namespace": owner.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MAX_MESSAGE],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": stamp(now),
        "lastTimestamp": stamp(now),
        "count": 1,
    }


def _turned(previous: JobStatus, status: JobStatus, type_: ConditionType, to: str = "True") -> bool:
    old, new = previous.condition(type_), status.condition(type_)
    return new is not None and new.status == to and (old is None or old.status != to)


def _since(status: JobStatus, type_: ConditionType = "Suspended") -> str:
    found = status.condition(type_)
    return found.last_transition_time if found else ""
