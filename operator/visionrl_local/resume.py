"""Continues a run that exists already."""

from __future__ import annotations

from datetime import datetime

from visionrl.job import Job
from visionrl.status import JobStatus
from visionrl_core.attempts import live, next_attempt
from visionrl_core.container_images import images_of, with_images
from visionrl_core.mutability import changed_immutable_fields
from visionrl_core.policies.failure import INTERRUPTED
from visionrl_local.folder import LocalError


def check_same_job(accepted: Job | None, wanted: Job) -> None:
    """Refuse to continue a run of another specification. Raises :class:`LocalError`."""
    if accepted is None:
        return
    # A job that names no image keeps the images that it was accepted with.
    images = images_of(accepted)
    if changed := changed_immutable_fields(with_images(accepted, images).spec, with_images(wanted, images).spec):
        raise LocalError(f"this run was started with another {', '.join(changed)}; --fresh starts over")


def resumed(status: JobStatus, accepted: Job | None, wanted: Job, now: datetime) -> JobStatus | None:
    """The status to continue with; None where the run is complete and the job asks for nothing more.

    Running a failed job again retries it; raising the iterations of a complete one trains further.
    """
    complete = status.condition("Complete")
    wants_more = accepted is not None and wanted.spec.training.iterations > accepted.spec.training.iterations
    if complete is not None and complete.status == "True" and not wants_more:
        return None
    if status.finished:
        return _reopened(status)
    return next_attempt(status, INTERRUPTED, False, now) if live(status) else status


def _reopened(status: JobStatus) -> JobStatus:
    return status.model_copy(
        update={
            "conditions": [each for each in status.conditions if each.type not in ("Complete", "Failed")],
            "attempt": status.attempt + 1,
            "restarts": 0,
            # The former attempts belong to the former end.
            "attempts": [],
            "completion_time": None,
        }
    )
