"""Kueue's rules, as far as they meet somebody who writes Workloads of his own: what its webhook refuses, and what its
scheduler and controllers write.

Written from its sources (versions 0.10 to 0.19, mostly the last), not from a run. Quota is counted in pods. The fake
knows Workloads only: pods that run without quota, or quota that is given away while pods run, are for tests to find.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Body = dict[str, Any]
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
MAX_POD_SETS = 8
REQUEUE_SECONDS = 60
STOPPED = ("ClusterQueueStopped", "LocalQueueStopped")


# --- the webhook


def webhook(old: Body | None, new: Body) -> str | None:
    """What is wrong with a Workload, or with a change of it, whoever makes it; None where it may be."""
    spec, status = new["spec"], new.get("status", {})
    before = old.get("status", {}) if old else {}
    names = [each["name"] for each in spec["podSets"]]
    if not 1 <= len(names) <= MAX_POD_SETS or len(set(names)) < len(names):
        return "spec.podSets: 1 to 8 of different names"
    if wrong := next((name for name in names if not DNS_LABEL.fullmatch(name)), None):
        return f"spec.podSets: {wrong} is no DNS label"
    for each in spec["podSets"]:
        for container in each["template"]["spec"]["containers"]:
            if any("pods" in amounts for amounts in container.get("resources", {}).values()):
                return "the key is reserved for internal kueue use"
    named = spec.get("priorityClassName") or spec.get("priorityClassRef")
    if named and spec.get("priority") is None:
        return "spec.priority: required with a priority class"
    if old and reserved(old):
        for name in ("podSets", "queueName"):
            if old["spec"].get(name) != spec.get(name):
                return f"spec.{name}: field is immutable"
    admission = status.get("admission")
    if reserved(new) and admission is None:
        return "status.admission: must be set while the QuotaReserved condition is true"
    if admission is not None:
        if sorted(each["name"] for each in admission["podSetAssignments"]) != sorted(names):
            return "status.admission.podSetAssignments: must have the same number of podSets as the spec"
        if before.get("admission") not in (None, admission):
            return "status.admission: field is immutable"
    if old and reserved(old) and reserved(new):
        after = {each["name"]: each["count"] for each in status.get("reclaimablePods", ())}
        if any(after.get(each["name"], 0) < each["count"] for each in before.get("reclaimablePods", ())):
            return "status.reclaimablePods: cannot be less"
    return _wrong_condition(status.get("conditions", []))


def _wrong_condition(conditions: list[Body]) -> str | None:
    if len({each["type"] for each in conditions}) < len(conditions):
        return "status.conditions: twice the same type"
    for each in conditions:
        if each["status"] not in ("True", "False", "Unknown") or not REASON.fullmatch(each.get("reason", "")):
            return f"status.conditions: {each}"
        if "message" not in each or datetime.fromisoformat(each["lastTransitionTime"]).tzinfo is None:
            return f"status.conditions: {each}"
    return None


# --- reading


def condition(workload: Body, type_: str) -> Body:
    conditions = workload.get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == type_), {})


def true(workload: Body, type_: str) -> bool:
    return bool(condition(workload, type_).get("status") == "True")


def reserved(workload: Body) -> bool:
    return true(workload, "QuotaReserved")


def pods(workload: Body) -> int:
    return sum(each["count"] for each in workload["spec"]["podSets"])


def active(workload: Body) -> bool:
    return bool(workload["spec"].get("active", True))


def takes_quota(workload: Body) -> bool:
    """Kueue's own books: what is inactive, finished or deleted is free at once, pods or not."""
    return reserved(workload) and active(workload) and not true(workload, "Finished")


# --- scheduler and controllers


@dataclass
class FakeKueue:
    """One ClusterQueue with its LocalQueue; ``clock`` is moved by tests."""

    quota: int = 3
    """Pods."""
    queue: str = "gpus"
    flavor: str = "h200"
    checks: tuple[str, ...] = ()
    """Admission checks; they pass when a test says so."""
    pods_ready_timeout: float | None = None
    backoff_limit: int | None = None
    stopped: bool = False
    """The queue's stopPolicy holds its Workloads back."""
    clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    passed: dict[str, list[Body]] = field(default_factory=dict)
    """``podSetUpdates`` of the checks that have passed."""

    def step(self, workloads: Iterable[Body]) -> list[Body]:
        """What Kueue does next: the Workloads that it writes, each as it is then."""
        found = [copy.deepcopy(each) for each in workloads if "deletionTimestamp" not in each["metadata"]]
        before = copy.deepcopy(found)
        for each in found:
            if not true(each, "Finished"):
                self._control(each)
        self._schedule([each for each in found if not true(each, "Finished")])
        return [now for now, then in zip(found, before, strict=True) if now != then]

    def preempt(self, workload: Body, reason: str = "Preempted") -> Body:
        """Quota is wanted by somebody else, or the queue stops; it stays reserved until its owner gives it back."""
        self.stopped = self.stopped or reason in STOPPED
        taken = copy.deepcopy(workload)
        self._set(taken, "Evicted", True, reason, f"{reason} to accommodate a workload of a higher priority")
        if reason == "Preempted":
            self._set(taken, "Preempted", True, "InClusterQueue", "Preempted to accommodate a workload")
        return taken

    def _control(self, workload: Body) -> None:
        """Kueue's workload controller."""
        status, evicted = workload.setdefault("status", {}), condition(workload, "Evicted")
        requeued = condition(workload, "Requeued")
        gone = evicted.get("status") == "True" and evicted.get("reason", "").startswith("Deactivated")
        if not active(workload):
            if not gone:
                self._set(workload, "Evicted", True, "Deactivated", "The workload is deactivated")
            return
        if gone and not reserved(workload) and requeued.get("status") == "False":
            status.pop("requeueState", None)
            self._set(workload, "Requeued", True, "Reactivated", "The workload was reactivated")
        if requeued.get("status") == "False" and requeued.get("reason") in STOPPED and not self.stopped:
            restarted = requeued["reason"].replace("Stopped", "Restarted")
            self._set(workload, "Requeued", True, restarted, "The queue was restarted after being stopped")
        at = status.get("requeueState", {}).get("requeueAt")
        if requeued.get("status") == "False" and requeued.get("reason") == "PodsReadyTimeout" and self._over(at):
            self._set(workload, "Requeued", True, "BackoffFinished", "The workload backoff was finished")
        if reserved(workload) and not true(workload, "Admitted") and not true(workload, "Evicted"):
            self._admit(workload)
        if true(workload, "Admitted") and not true(workload, "Evicted") and not true(workload, "PodsReady"):
            self._time_out(workload)

    def _over(self, at: str | None) -> bool:
        return at is None or datetime.fromisoformat(at) <= self.clock

    def _admit(self, workload: Body) -> None:
        workload["status"]["admissionChecks"] = [
            {
                "name": name,
                "state": "Ready" if name in self.passed else "Pending",
                "message": "" if name in self.passed else "not yet",
                "podSetUpdates": self.passed.get(name, []),
            }
            for name in self.checks
        ]
        if all(name in self.passed for name in self.checks):
            self._set(workload, "Admitted", True, "Admitted", "The workload is admitted")

    def _time_out(self, workload: Body) -> None:
        if self.pods_ready_timeout is None:
            return
        ready = condition(workload, "PodsReady")
        if ready.get("reason") == "WaitForRecovery":
            return  # recoveryTimeout is not set
        admitted = datetime.fromisoformat(condition(workload, "Admitted")["lastTransitionTime"])
        if self.clock < admitted + timedelta(seconds=self.pods_ready_timeout):
            return
        state = workload["status"].setdefault("requeueState", {})
        state["count"] = state.get("count", 0) + 1
        if self.backoff_limit is not None and state["count"] > self.backoff_limit:
            workload["spec"]["active"] = False
            message = "The workload is deactivated due to exceeding the maximum number of re-queuing retries"
            self._set(workload, "Evicted", True, "DeactivatedDueToRequeuingLimitExceeded", message)
            return
        delay = timedelta(seconds=REQUEUE_SECONDS * 2 ** (state["count"] - 1))
        state["requeueAt"] = (self.clock + delay).isoformat()
        message = f"Exceeded the PodsReady timeout {workload['metadata']['namespace']}/{workload['metadata']['name']}"
        self._set(workload, "Evicted", True, "PodsReadyTimeout", message)

    def _schedule(self, workloads: list[Body]) -> None:
        used = sum(pods(each) for each in workloads if takes_quota(each))
        waiting = [each for each in workloads if active(each) and not reserved(each) and not self.stopped]
        waiting = [each for each in waiting if condition(each, "Requeued").get("status") != "False"]
        for each in sorted(waiting, key=lambda each: -(each["spec"].get("priority") or 0)):
            if each["spec"].get("queueName") != self.queue:
                words = f"LocalQueue {each['spec'].get('queueName')} doesn't exist"
                self._set(each, "QuotaReserved", False, "Inadmissible", words)
            elif used + pods(each) > self.quota:
                words = (
                    "couldn't assign flavors to pod set taskapp: insufficient unused quota for pods in flavor "
                    f"{self.flavor}, {used + pods(each) - self.quota} more needed"
                )
                self._set(each, "QuotaReserved", False, "Pending", words)
            else:
                used += pods(each)
                self._reserve(each)

    def _reserve(self, workload: Body) -> None:
        """One write: the admission and all that follows from it."""
        workload["status"]["admission"] = {
            "clusterQueue": "cluster-queue",
            "podSetAssignments": [
                {"name": each["name"], "count": each["count"], "flavors": {"cpu": self.flavor, "memory": self.flavor}}
                for each in workload["spec"]["podSets"]
            ],
        }
        self._set(workload, "QuotaReserved", True, "QuotaReserved", "Quota reserved in ClusterQueue cluster-queue")
        for each in ("Evicted", "Preempted"):
            if true(workload, each):
                self._set(workload, each, False, "QuotaReserved", "Previously: evicted")
        self._admit(workload)

    def _set(self, workload: Body, type_: str, value: bool, reason: str, message: str) -> None:
        """As Kueue's server-side apply does: its own conditions, by type."""
        conditions = workload.setdefault("status", {}).setdefault("conditions", [])
        status = "True" if value else "False"
        old = condition(workload, type_)
        moved = old.get("status") != status
        new = {
            "type": type_,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": self.clock.isoformat() if moved else old["lastTransitionTime"],
            "observedGeneration": workload["metadata"].get("generation", 1),
        }
        if old:
            conditions[conditions.index(old)] = new
        else:
            conditions.append(new)
