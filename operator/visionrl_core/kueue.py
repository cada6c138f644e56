"""Kueue's objects as the API server holds them, reduced to what a decision depends on.

A Workload asks for the quota of all pods of a job at once. Kueue decides about it; whoever wrote it (here: the
operator) starts and stops the pods. Read in Kueue 0.10 to 0.19; see ``policies.queueing`` for the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from visionrl_core.manifests.common import INPUTS_ANNOTATION

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What Kueue assigned to the pods of one component."""

    pod_set: str
    flavors: tuple[str, ...]
    """ResourceFlavors, without repetition."""
    topology: bool = False
    """Single domains of a topology were chosen for the pods."""


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """One Workload."""

    made_for: str = ""
    """Digest of what of the job its pod sets were made for."""
    generation: int = 1
    deleting: bool = False
    active: bool = True
    assignments: tuple[Assignment, ...] | None = None
    """None without an admission."""
    updates: tuple[Body, ...] = ()
    """What admission checks want of pods: ``name``, ``labels``, ``annotations``, ``nodeSelector``, ``tolerations``."""
    pending_checks: tuple[tuple[str, str], ...] = ()
    """Name and message of admission checks that are not ready."""
    requeue_at: str | None = None
    """Before this time Kueue does not consider it again."""
    conditions: Mapping[str, Body] = field(default_factory=dict)
    """By type."""

    def true(self, condition: str) -> bool:
        return self.conditions.get(condition, {}).get("status") == "True"

    @property
    def reserved(self) -> bool:
        """It has quota. Kueue itself asks the condition, its webhook both."""
        return self.true("QuotaReserved") or self.assignments is not None

    @property
    def flavors(self) -> tuple[str, ...]:
        names = (flavor for assigned in self.assignments or () for flavor in assigned.flavors)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Flavor:
    """A ResourceFlavor: what selects its nodes."""

    node_labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Body, ...] = ()


@dataclass(frozen=True)
class Queue:
    """Kueue, as far as it concerns one job."""

    api_version: str = ""
    """Of its objects; empty where the cluster has no Kueue that the operator may use."""
    workload: WorkloadView | None = None
    flavors: Mapping[str, Flavor] = field(default_factory=dict)
    """Those that the Workload was assigned, as far as they could be read."""
    priority: int | None = None
    """Value of the job's WorkloadPriorityClass; None where it names none or there is none of that name."""


def workload_view(body: Body) -> WorkloadView:
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status") or {}
    admission = status.get("admission")
    checks = status.get("admissionChecks") or ()
    return WorkloadView(
        made_for=(metadata.get("annotations") or {}).get(INPUTS_ANNOTATION, ""),
        generation=metadata.get("generation", 1),
        deleting="deletionTimestamp" in metadata,
        active=spec.get("active", True) is not False,
        assignments=_assignments(admission) if admission is not None else None,
        updates=tuple(update for check in checks for update in check.get("podSetUpdates") or ()),
        pending_checks=tuple(
            (check.get("name", ""), check.get("message", "")) for check in checks if check.get("state") != "Ready"
        ),
        requeue_at=(status.get("requeueState") or {}).get("requeueAt"),
        conditions={condition["type"]: condition for condition in status.get("conditions") or ()},
    )


def _assignments(admission: Body) -> tuple[Assignment, ...]:
    found: Sequence[Body] = admission.get("podSetAssignments") or ()
    return tuple(
        Assignment(
            pod_set=each.get("name", ""),
            flavors=tuple(dict.fromkeys((each.get("flavors") or {}).values())),
            topology=each.get("topologyAssignment") is not None,
        )
        for each in found
    )


def flavor_of(body: Body) -> Flavor:
    spec = body.get("spec") or {}
    return Flavor(spec.get("nodeLabels") or {}, tuple(spec.get("tolerations") or ()))
