"""The ledger of failures: every end of a component that nobody asked for, and when they are too many.

``status.failures`` holds it, so it survives the operator. ``decide`` keeps it for every executor: an executor only
reports how often the current instance of a component (a pod, a process) has ended
(``ObservedComponent.instance``, ``ends``, ``ended``, ``exit_code``, ``exit_reason``). An executor that needs the
verdict itself asks ``too_many(ledger, component, policy, now)``.

The limit is a rate: more than ``maxRestarts`` counted failures of one component within ``windowSeconds`` fail the
job, whatever the component does at this moment. Older failures are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from visionrl.job import Component, FailurePolicy
from visionrl.status import ComponentFailure
from visionrl_core.clock import moment, stamp
from visionrl_core.observed import ObservedComponent
from visionrl_core.policies import failure
from visionrl_core.policies.failure import Failure

Ledger = Sequence[ComponentFailure]

KEPT_PER_COMPONENT = 16


def new_end(
    ledger: Ledger, component: Component, state: ObservedComponent, policy: FailurePolicy, now: datetime
) -> ComponentFailure | None:
    """The entry for the ends of a component that the ledger does not have yet; None where it has all of them.

    Only the last of several new ends has a time. The others are assumed to be spread evenly over the time since the
    previous entry of the instance, or since its creation: the entry counts those of the window."""
    own = [entry for entry in ledger if entry.component == component and entry.instance == state.instance]
    known = max((entry.ends for entry in own), default=0)
    if state.ends <= known:
        return None
    last = min(now, state.ended or now)
    first = max((moment(entry.at) for entry in own), default=state.created or last)
    return entry_of(
        failure.failure_of(component, state),
        policy,
        at=last,
        count=_within_window(state.ends - known, first, last, now - window(policy)),
        instance=state.instance,
        ends=state.ends,
    )


def forgiven(
    servers: Iterable[tuple[Component, ObservedComponent]], policy: FailurePolicy, now: datetime
) -> list[ComponentFailure]:
    """Entries for all ends so far of servers that outlive a job's end. They do not count when the job goes on."""
    ends = (new_end((), component, state, policy, now) for component, state in servers)
    return [entry.model_copy(update={"counted": False}) for entry in ends if entry is not None]


def entry_of(
    failed: Failure, policy: FailurePolicy, at: datetime, count: int = 1, instance: str = "", ends: int = 0
) -> ComponentFailure:
    """A failure as the ledger holds it."""
    return ComponentFailure(
        component=failed.component,
        type=failure.type_of(failed),
        at=stamp(at),
        cause=failed.cause,
        counted=failure.action(policy, failed) != "RestartIgnoreLimit",
        count=count,
        instance=instance,
        ends=ends,
    )


def with_entry(ledger: Ledger, entry: ComponentFailure, policy: FailurePolicy, now: datetime) -> list[ComponentFailure]:
    """The ledger with one more entry and without those that no longer matter. The newest entry of each component stays
    in any case: it says up to which end the ledger is complete."""
    horizon = stamp(now - window(policy))
    newest = {kept.component: kept for kept in (*ledger, entry)}
    kept = [old for old in (*ledger, entry) if old.at >= horizon or old is newest[old.component]]
    return _compacted(kept, entry.component)


def counted(ledger: Ledger, component: Component, policy: FailurePolicy, now: datetime) -> int:
    """Failures of a component that count at this moment."""
    horizon = stamp(now - window(policy))
    return sum(e.count for e in ledger if e.component == component and e.counted and e.at >= horizon)


def too_many(ledger: Ledger, component: Component, policy: FailurePolicy, now: datetime) -> bool:
    """Whether the failures of a component fail the job."""
    return counted(ledger, component, policy, now) > policy.max_restarts


def window(policy: FailurePolicy) -> timedelta:
    return timedelta(seconds=policy.window_seconds)


def _within_window(ends: int, first: datetime, last: datetime, horizon: datetime) -> int:
    """How many of so many ends, the last one at ``last``, are younger than ``horizon``; at least 1."""
    if last <= first:
        return ends
    share = max(0.0, (last - horizon) / (last - first))
    return 1 + min(ends - 1, int(share * ends))


def _compacted(ledger: list[ComponentFailure], component: Component) -> list[ComponentFailure]:
    """At most ``KEPT_PER_COMPONENT`` entries of a component: what does not count is dropped first, then the two oldest
    become one with the time of the younger."""
    own = [entry for entry in ledger if entry.component == component]
    while len(own) > KEPT_PER_COMPONENT:
        idle = next((entry for entry in own[:-1] if not entry.counted), None)
        if idle is not None:
            own.remove(idle)
        else:
            own[:2] = [own[1].model_copy(update={"count": own[0].count + own[1].count})]
    others = [entry for entry in ledger if entry.component != component]
    return sorted((*others, *own), key=lambda entry: entry.at)
