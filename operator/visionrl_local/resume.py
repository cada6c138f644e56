"""Continues a run that exists already."""

from __future__ import annotations

from datetime import datetime, timedelta

from visionrl.job import Job
from visionrl.status import JobStatus
from visionrl_core.attempts import live, next_attempt, reopened
from visionrl_core.clock import moment, stamp
from visionrl_core.container_images import images_of, with_images
from visionrl_core.mutability import changed_immutable_fields
from visionrl_core.policies.failure import INTERRUPTED
from visionrl_core.policies.lifecycle import keep_time
from visionrl_local.folder import LocalError


def check_same_job(accepted: Job | None, wanted: Job) -> None:
    """Refuse to continue a run of another specification. Raises :class:`LocalError`."""
    if accepted is None:
        return
    # A job that names no image keeps the images that it was accepted with.
    images = images_of(accepted)
    if changed := changed_immutable_fields(with_images(accepted, images).spec, with_images(wanted, images).spec):
        raise LocalError(f"this run was started with another {', '.join(changed)}; --fresh starts over")


def resumed(
    status: JobStatus, accepted: Job | None, wanted: Job, now: datetime, last_alive: datetime
) -> JobStatus | None:
    """The status to continue with; None where the run is complete and the job asks for nothing more.

    Running a failed job again retries it; raising the iterations of a complete one trains further. ``last_alive`` is
    when the executor of the run was last alive: the time since then is none in which the job was active.
    """
    complete = status.condition("Complete")
    wants_more = accepted is not None and wanted.spec.training.iterations > accepted.spec.training.iterations
    if complete is not None and complete.status == "True" and not wants_more:
        return None
    if status.finished:
        return reopened(status)
    return interrupted(_not_in_the_future(status, now), min(now, last_alive))


def interrupted(status: JobStatus, now: datetime) -> JobStatus:
    """The status when no executor works on the run any more: its clock stands still, its attempt has ended."""
    status = keep_time(status, stopped=True, now=now)
    return next_attempt(status, INTERRUPTED, False, now) if live(status) else status


def after_jump(status: JobStatus, jump: timedelta) -> JobStatus:
    """The status when the clock has jumped: the times from which deadlines, back-offs and the duration of an attempt
    are counted, and those of the failures, have jumped along, so that none of these has become longer or shorter."""

    def moved(text: str | None) -> str | None:
        return text and stamp(moment(text) + jump)

    attempts = list(status.attempts)
    if attempts:
        last = attempts[-1]
        attempts[-1] = last.model_copy(update={"started": moved(last.started), "ended": moved(last.ended)})
    failures = [each.model_copy(update={"at": moved(each.at)}) for each in status.failures]
    return status.model_copy(
        update={"active_since": moved(status.active_since), "attempts": attempts, "failures": failures}
    )


def _not_in_the_future(status: JobStatus, now: datetime) -> JobStatus:
    """The status without times that a clock wrote that was ahead and has been corrected since."""

    def past(text: str) -> str:
        return stamp(min(now, moment(text)))

    attempts = [
        each.model_copy(update={"started": past(each.started), "ended": each.ended and past(each.ended)})
        for each in status.attempts
    ]
    failures = [each.model_copy(update={"at": past(each.at)}) for each in status.failures]
    return status.model_copy(update={"attempts": attempts, "failures": failures})
