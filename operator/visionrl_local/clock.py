"""Wall time, and its jumps: somebody sets the clock, or the machine sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

TOLERANCE = timedelta(seconds=2)
"""A clock that is corrected little by little does not jump."""


class Clock:
    """Tells the time, and by how much it jumped against a clock that nobody can set and that stands still in sleep."""

    def __init__(
        self, wall: Callable[[], datetime] = lambda: datetime.now(UTC), steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._steady = wall, steady
        self._offset = self._difference()

    def now(self) -> datetime:
        return self._wall()

    def jump(self) -> timedelta:
        """How far the wall clock jumped since the last call, forward or (negative) back; zero almost always."""
        jumped = self._difference() - self._offset
        if abs(jumped) <= TOLERANCE:
            return timedelta(0)
        self._offset += jumped
        return jumped

    def _difference(self) -> timedelta:
        return (self._wall() - datetime.fromtimestamp(0, UTC)) - timedelta(seconds=self._steady())
