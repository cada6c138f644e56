"""Time: suspension, deadlines, and what happens after the end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from visionrl.job import JobSpec, Lifecycle
from visionrl.status import JobStatus
from visionrl_core.clock import moment, stamp
from visionrl_core.policies import failure


@dataclass(frozen=True)
class Deadline:
    """A time at which the job fails."""

    at: datetime
    reason: str
    message: str


def keep_time(status: JobStatus, stopped: bool, now: datetime) -> JobStatus:
    """Start the clock of a job that runs, stop that of one that is suspended or at its end."""
    if stopped:
        if status.active_since is None:
            return status
        return status.model_copy(update={"active_seconds": active_seconds(status, now), "active_since": None})
    if status.active_since is not None:
        return status
    return status.model_copy(update={"start_time": status.start_time or stamp(now), "active_since": stamp(now)})


def active_seconds(status: JobStatus, now: datetime) -> int:
    """Time since the start that was not suspended."""
    stretch = now - moment(status.active_since) if status.active_since else timedelta(0)
    return status.active_seconds + max(0, int(stretch.total_seconds()))


def deadlines(spec: JobSpec, status: JobStatus) -> list[Deadline]:
    """The deadlines that apply to a job whose clock runs, the nearest first."""
    if status.active_since is None:
        return []
    zero = moment(status.active_since) - timedelta(seconds=status.active_seconds)
    found = []
    before, active = spec.lifecycle.pre_running_deadline_seconds, spec.lifecycle.active_deadline_seconds
    if before is not None and (not status.attempts or status.attempts[-1].ended is not None):
        retry_at = failure.retry_at(spec.failure_policy, status.attempts)
        could_start = zero if retry_at is None else max(retry_at, moment(status.active_since))
        message = f"attempt {status.attempt} of the trainer did not run within {before} s"
        found.append(Deadline(could_start + timedelta(seconds=before), "PreRunningDeadlineExceeded", message))
    if active is not None:
        message = f"not complete within {active} s"
        found.append(Deadline(zero + timedelta(seconds=active), "ActiveDeadlineExceeded", message))
    return sorted(found, key=lambda deadline: deadline.at)


def expiry(lifecycle: Lifecycle, status: JobStatus) -> datetime | None:
    """When the object of a finished job is deleted."""
    ttl = lifecycle.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return None
    return moment(status.completion_time) + timedelta(seconds=ttl)
