"""The status subresource: read back as it was written, written once a pass and only where it changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionrl.status import JobStatus
from visionrl.versions import validate_known
from visionrl_core.kinds import JOB
from visionrl_operator.api import Api
from visionrl_operator.store import Store, StoredJob


class Outdated(Exception):
    """The job is another one by now than the one that was decided about."""


def read_status(raw: Mapping[str, Any]) -> JobStatus:
    """The status as it was written. Fields that this version does not know are left alone; anything else that is
    wrong raises :class:`pydantic.ValidationError`: guessing could start an attempt twice."""
    return validate_known(JobStatus, raw)[0]


def plain(status: JobStatus) -> dict[str, Any]:
    """As the API server holds it, without empty texts: some old API servers take them for null."""
    shown: dict[str, Any] = _without_empty(status.model_dump(mode="json", by_alias=True, exclude_none=True))
    return shown


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) between two documents; empty where they are equal."""
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        if isinstance(value, Mapping) and isinstance(old.get(name), Mapping):
            if inner := merge_patch(old[name], value):
                patch[name] = inner
        elif name not in old or old[name] != value:
            patch[name] = value
    return patch


async def write_status(api: Api, store: Store, job: StoredJob, status: JobStatus) -> bool:
    """Write what changed; whether anything did. Raises :class:`Outdated` where the job changed since it was read: an
    operator with an old view of the job gets no further than this."""
    patch = merge_patch(job.status, plain(status))
    if not patch:
        return False
    owner = job.owner
    body = {"metadata": {"resourceVersion": str(job.version), "uid": owner.uid}, "status": patch}
    written = await api.patch_status(JOB, owner.namespace, owner.name, body)
    if written is None:
        raise Outdated(f"{owner.namespace}/{owner.name}")
    store.note(JOB.name, written)
    return True


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_empty(inner) for name, inner in value.items() if inner != ""}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value
