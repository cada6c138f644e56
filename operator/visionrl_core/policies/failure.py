"""What follows from a failure: ordered rules, the first that matches decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from visionrl.component import EXIT_CONFIGURATION, EXIT_HUNG
from visionrl.job import Component, FailurePolicy, FailureRule
from visionrl.status import Attempt
from visionrl_core.clock import moment
from visionrl_core.observed import ObservedComponent

MAX_BACKOFF = timedelta(seconds=300)
# An attempt that lasted this long was healthy: the delay starts over, as the kubelet's does.
HEALTHY = timedelta(seconds=600)

# The cluster took the pod away; the job did nothing wrong.
DISRUPTIONS = frozenset(
    {
        "Deleted",
        "DeletionByPodGC",
        "DeletionByTaintManager",
        "Evicted",
        "EvictionByEvictionAPI",
        "NodeLost",
        "NodeShutdown",
        "Preempted",
        "Preempting",
        "PreemptionByScheduler",
        "Shutdown",
        "Terminated",
        "TerminationByKubelet",
    }
)

# The kubelet refused the pod, before any of its containers ran; the scheduler finds another node.
REJECTIONS = frozenset(
    {
        "NodeAffinity",
        "NodePorts",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
    }
)
OUT_OF_RESOURCE = "OutOf"
"""Begins the reason of a pod for which the node has no more of a resource: OutOfcpu, OutOfnvidia.com/gpu."""

# It ran, and did not do its work: an executor's liveness probe ended it, or the deadline for progress passed.
NO_PROGRESS = "NoProgress"
HANGS = frozenset({NO_PROGRESS, "Unhealthy"})

SUSPENDED = "suspended"
INTERRUPTED = "interrupted"
QUEUED_AGAIN = "its queue took the quota back"
# Attempts that a person or the queue ended: nothing failed, and the next one starts without a delay.
PLANNED_CAUSES = (SUSPENDED, INTERRUPTED, QUEUED_AGAIN)

FailureType = Literal["Rejected", "Disrupted", "Crashed", "Hung"]
Action = Literal["Fail", "Restart", "RestartIgnoreLimit"]


@dataclass(frozen=True)
class Failure:
    """A component that ended and should not have."""

    component: Component
    exit_code: int | None
    reason: str
    message: str = ""

    @property
    def cause(self) -> str:
        """One line: "trainer: exit code 137 (OOMKilled)"."""
        code = f"exit code {self.exit_code}" if self.exit_code is not None else ""
        reason = self.reason if self.reason not in ("", "Error") else ""
        what = f"{code} ({reason})" if code and reason else code or reason or "ended"
        message = last_line(self.message)
        return f"{self.component}: {what}{f': {message}' if message else ''}"


def failure_of(component: Component, state: ObservedComponent) -> Failure:
    # Of a container that waits for its next start, the message is the kubelet's about the delay.
    return Failure(component, state.exit_code, state.exit_reason or state.reason, state.log or state.message)


def type_of(failure: Failure) -> FailureType:
    if failure.reason in REJECTIONS or failure.reason.startswith(OUT_OF_RESOURCE):
        return "Rejected"
    if failure.reason in DISRUPTIONS:
        return "Disrupted"
    return "Hung" if failure.reason in HANGS or failure.exit_code == EXIT_HUNG else "Crashed"


def action(policy: FailurePolicy, failure: Failure) -> Action:
    """What the first matching rule says. A configuration error fails whatever the rules say: it would fail again.
    Without a matching rule, what the cluster caused restarts uncounted and everything else restarts."""
    if failure.exit_code == EXIT_CONFIGURATION:
        return "Fail"
    rule = rule_for(policy, failure)
    if rule is not None:
        return rule.action
    return "RestartIgnoreLimit" if type_of(failure) in ("Rejected", "Disrupted") else "Restart"


def rule_for(policy: FailurePolicy, failure: Failure) -> FailureRule | None:
    """The first rule that matches."""
    return next((rule for rule in policy.rules if _matches(rule, failure)), None)


def retry_at(policy: FailurePolicy, attempts: Sequence[Attempt]) -> datetime | None:
    """When the next attempt may start; None before the first one and while one runs."""
    if not attempts or attempts[-1].ended is None:
        return None
    return moment(attempts[-1].ended) + backoff(policy, attempts)


def backoff(policy: FailurePolicy, attempts: Sequence[Attempt]) -> timedelta:
    """Delay after the last attempt's end: doubles with each failure in a row. An attempt that was healthy, or brought
    the job forward, ends the row."""
    failures = 0
    before = [0, *(attempt.iteration for attempt in attempts)]
    for attempt, iteration in zip(reversed(attempts), reversed(before[:-1]), strict=True):
        if attempt.ended is None or attempt.cause is None or attempt.cause in PLANNED_CAUSES:
            break
        failures += 1
        if moment(attempt.ended) - moment(attempt.started) >= HEALTHY or attempt.iteration > iteration:
            break
    if failures == 0:
        return timedelta(0)
    return min(MAX_BACKOFF, timedelta(seconds=policy.backoff_seconds * 2 ** (failures - 1)))


def last_lines(text: str, limit: int = 2000) -> str:
    """The end of a log, of at most ``limit`` characters."""
    return text.strip()[-limit:]


def last_line(text: str, limit: int = 300) -> str:
    """The last line with content, of at most ``limit`` characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else ""


def _matches(rule: FailureRule, failure: Failure) -> bool:
    return (
        (rule.component is None or rule.component == failure.component)
        and (not rule.exit_codes or failure.exit_code in rule.exit_codes)
        and (not rule.reasons or failure.reason in rule.reasons)
    )
