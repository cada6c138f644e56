"""Jobs as lines for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from visionrl.status import JobStatus
from visionrl_cli.places.place import Event, JobRecord
from visionrl_core.clock import moment
from visionrl_local.text import progress_line
from visionrl_local.view import component_text

LIST_HEAD = ("NAME", "PHASE", "ITER", "REWARD", "EP/MIN", "POLICY", "AGE", "REASON")


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of words under each other. The last column has the width that it needs."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "   ".join(cells).rstrip()


def list_row(record: JobRecord, now: datetime) -> tuple[str, ...]:
    progress = record.status.progress
    return (
        record.name,
        record.phase,
        f"{progress.iteration}/{progress.total}" if progress.total else "",
        "" if progress.reward is None else f"{progress.reward:.2f}",
        "" if progress.episodes_per_minute is None else f"{progress.episodes_per_minute:.0f}",
        record.status.policy.serving or "",
        age(record.created, now),
        record.status.reason,
    )


def details(record: JobRecord, now: datetime) -> Iterator[str]:
    """All that there is to say about one job, in a screenful."""
    status = record.status
    yield f"{record.name}  {record.phase}  {status.reason}".rstrip()
    if record.created:
        yield f"created {record.created} ({age(record.created, now)} ago)"
    if line := progress_line(status):
        yield line
    if status.policy.trained:
        yield f"trained {status.policy.trained}, serving {status.policy.serving or 'nothing yet'}"
    if status.components:
        yield "components:"
        yield from columns([(f"  {each.name}", component_text(each), each.node or "") for each in status.components])
    if status.conditions:
        yield "conditions:"
        yield from columns([(f"  {each.type}", each.status, each.reason, each.message) for each in status.conditions])
    if status.attempts:
        yield "attempts of the trainer:"
        for attempt in status.attempts:
            end = f" to {attempt.ended}: {attempt.cause or 'complete'}" if attempt.ended else ", runs"
            yield f"  {attempt.number}: {attempt.started}{end}"
    if status.failure_log:
        yield "last lines of what failed:"
        yield from (f"  {line}" for line in status.failure_log.splitlines())


def timeline(record: JobRecord, events: Sequence[Event]) -> list[tuple[str, str]]:
    """What happened to a job, oldest first: time (RFC 3339) and text."""
    status = record.status
    found = [(record.created, "created")] if record.created else []
    found += _attempts(status)
    for failed in status.failures:
        times = f", {failed.count} times" if failed.count > 1 else ""
        found.append((failed.at, f"{failed.type.lower()}: {failed.cause}{times}"))
    for condition in status.conditions:
        # The message of what holds goes on changing after the time of the transition.
        lasts = condition.type in ("Complete", "Failed") or condition.status == "False"
        says = f": {condition.message}" if condition.message and lasts else ""
        found.append(
            (condition.last_transition_time, f"{condition.type} {condition.status} ({condition.reason}){says}")
        )
    for event in events:
        about = f"{event.about}: " if event.about else ""
        found.append((event.time, f"{about}{event.reason}: {event.message}"))
    return sorted(dict.fromkeys(found))


def _attempts(status: JobStatus) -> list[tuple[str, str]]:
    found = []
    for attempt in status.attempts:
        found.append((attempt.started, f"attempt {attempt.number} of the trainer runs"))
        if attempt.ended:
            found.append((attempt.ended, f"attempt {attempt.number} ended: {attempt.cause or 'complete'}"))
    return found


def age(time: str, now: datetime) -> str:
    """ "3d", "5h", "12m", "40s", as kubectl writes it; empty where the time is unknown."""
    try:
        seconds = (now - moment(time)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{math.floor(seconds / size)}{unit}"
    return f"{max(0, math.floor(seconds))}s"


def now() -> datetime:
    return datetime.now(UTC)
