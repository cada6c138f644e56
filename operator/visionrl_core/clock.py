"""Times as the status writes them: RFC 3339 in UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(time: datetime) -> str:
    # Not strftime, which does not pad years to four digits.
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
