"""A work queue of keys: deduplicating, delayed, with a back-off per key.

A key that is added while it waits is one piece of work, due at the earlier of the two times. A key that is added while
a worker has it waits until that worker is done: no two workers ever have the same key.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class ShutDown(Exception):
    """The queue gives out no more keys."""


class WorkQueue(Generic[Key]):
    """``clock`` returns seconds that never go back. Not thread-safe: all calls come from one event loop."""

    def __init__(self, clock: Callable[[], float], first_delay: float = 0.5, longest_delay: float = 60.0) -> None:
        self._clock, self._first_delay, self._longest_delay = clock, first_delay, longest_delay
        self._due: dict[Key, float] = {}
        # Entries whose time differs from `_due` were overtaken by an earlier one and are skipped.
        self._heap: list[tuple[float, int, Key]] = []
        self._sequence = 0
        self._active: set[Key] = set()
        # Keys that became due while a worker had them; they go back into the heap when it is done.
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._stopped = False

    def __len__(self) -> int:
        """Keys that wait for a worker or for their time."""
        return len(self._due) + len(self._again)

    @property
    def active(self) -> frozenset[Key]:
        """Keys that workers have."""
        return frozenset(self._active)

    def ready(self) -> int:
        """Keys whose time has come and that no worker has."""
        now = self._clock()
        return sum(1 for due in self._due.values() if due <= now)

    def add(self, key: Key) -> None:
        """Work on the key as soon as a worker is free."""
        self.add_after(key, 0)

    def add_after(self, key: Key, delay: float) -> None:
        """Work on the key, but not for ``delay`` seconds (unless it was to be worked on before)."""
        due = self._clock() + max(0.0, delay)
        waiting = self._again if key in self._active else self._due
        if key in waiting and waiting[key] <= due:
            return
        waiting[key] = due
        if waiting is self._due:
            self._push(key, due)

    def add_with_backoff(self, key: Key) -> float:
        """Work on the key after a delay that doubles with every call until :meth:`forget`; the delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(self._longest_delay, self._first_delay * 2 ** min(failures, 30))
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The key was worked on with success: its back-off starts over."""
        self._failures.pop(key, None)

    def take(self) -> Key | None:
        """The key that has been due the longest, or None. The caller owes a :meth:`done`."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self._active.add(key)
                return key
        return None

    def done(self, key: Key) -> None:
        """The worker that took the key has finished with it."""
        self._active.remove(key)
        if key in self._again:
            self._due[key] = self._again.pop(key)
            self._push(key, self._due[key])

    async def get(self) -> Key:
        """Wait for a key. Raises :class:`ShutDown` once the queue is shut down."""
        while not self._stopped:
            key = self.take()
            if key is not None:
                return key
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), self._time_to_next())
            except TimeoutError:
                continue
        raise ShutDown

    def shut_down(self) -> None:
        """Give out no more keys; keys that workers have may be finished."""
        self._stopped = True
        self._wake.set()

    def _push(self, key: Key, due: float) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        self._wake.set()

    def _time_to_next(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None
