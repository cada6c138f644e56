"""What the verbs know of a job, and what they can do with it, wherever it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import ValidationError

from visionrl.documents import DocumentError, parse_json
from visionrl.job import Component, Job
from visionrl.status import JobStatus
from visionrl.versions import validate_known

METRICS = "metrics.jsonl"
"""In the run folder: a line for each iteration."""
CANCELLED = "Cancelled"
STOPPED = "Stopped"
"""Of a job on this machine: nothing executes it."""


class PlaceError(Exception):
    """Why a job cannot be shown, changed or fetched; the message is for the user."""


@dataclass(frozen=True)
class JobRecord:
    """A job as it is now."""

    name: str
    namespace: str
    """Empty on this machine."""
    created: str
    """RFC 3339."""
    phase: str
    """A phase of the status, or ``Cancelled``, or ``Stopped``."""
    status: JobStatus
    document: Mapping[str, Any]
    """``apiVersion``, ``kind``, ``metadata`` and ``spec``, as they were given."""
    generation: int = 0
    """Of the document; 0 on this machine."""

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.document.get("spec") or {}
        return spec

    @property
    def ended(self) -> bool:
        """Nothing more will happen unless somebody asks for it."""
        return self.status.finished or self.phase in (CANCELLED, STOPPED)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        status = self.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {**self.document, "phase": self.phase, "status": status}


@dataclass(frozen=True)
class Event:
    """Something that happened, as the cluster tells it."""

    time: str
    """RFC 3339."""
    type: str
    """Normal or Warning."""
    reason: str
    message: str
    about: str = ""
    """What it is about, where that is not the job itself: Pod/demo-trainer-0-abcde."""


@dataclass(frozen=True)
class Tail:
    """Which part of a log is wanted."""

    lines: int | None = None
    """The last ones; None for all."""
    follow: bool = False
    """Go on until the component ends."""
    previous: bool = False
    """Of the container before its last restart."""


@dataclass(frozen=True)
class Metrics:
    """A job's numbers: of every iteration where its run folder is at hand, else the last ones of its status."""

    records: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""
    """Why there is no record of the iterations before."""


def metrics_of(lines: Iterable[str]) -> Metrics:
    """Those of a ``metrics.jsonl``."""
    records = []
    for line in lines:
        with contextlib.suppress(DocumentError):  # the last line, while it is written
            records.append(parse_json(line))
    return Metrics([record for record in records if isinstance(record, dict)])


class Place(Protocol):
    """Every method raises :class:`PlaceError`."""

    @property
    def title(self) -> str:
        """ "context kind, namespace default" or "runs/ on this machine"."""

    def jobs(self) -> list[JobRecord]: ...

    def job(self, name: str) -> JobRecord: ...

    def logs(self, name: str, component: Component, tail: Tail) -> Iterator[str]:
        """Lines, without their ends."""

    def events(self, name: str) -> list[Event]:
        """What the cluster tells about the job and its parts, oldest first; none on this machine."""

    def metrics(self, name: str) -> Metrics: ...

    def submit(self, job: Job) -> None: ...

    def suspend(self, name: str) -> None:
        """Free its resources; everything that it made stays."""

    def resume(self, name: str) -> None: ...

    def cancel(self, name: str) -> None:
        """Like :meth:`suspend`, and recorded as the job's end."""

    def command(self, words: str) -> str:
        """ "jobs resume demo" → the whole command of this place, as the user types it."""


def read_status(document: Any) -> JobStatus:
    """The status as somebody wrote it; what this version does not know is left out, one that cannot be read is new."""
    try:
        return validate_known(JobStatus, {} if document is None else document)[0]
    except ValidationError:
        return JobStatus(reason="its status cannot be read by this version of visionrl")
