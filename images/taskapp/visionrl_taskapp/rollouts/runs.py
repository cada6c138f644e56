"""Episodes by run id: a repeated request gets the same episode, in flight or finished."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeAlias

from visionrl.rollout import RolloutRequest

DEFAULT_CACHE_BYTES = 128 * 2**20
KEEP_S = 2 * 3600.0
"""How long a response is kept for a client whose connection broke: twice as long as an episode lasts by default, since
the client may notice as late as that."""


class RunConflictError(Exception):
    """The run id was used for a different request."""


@dataclass(frozen=True)
class Played:
    """A run's response, and whether it is the run's result: what was aborted is played again when asked for again."""

    response: bytes
    keep: bool = True


Play: TypeAlias = Callable[[RolloutRequest], Coroutine[None, None, Played]]


@dataclass(frozen=True)
class _Finished:
    digest: str
    response: bytes
    ended: float


@dataclass(frozen=True)
class _Playing:
    digest: str
    task: asyncio.Task[bytes]


class Runs:
    """Plays each run once. Responses are kept for `KEEP_S` seconds while they fit into `cache_bytes`; beyond that, the
    least recently used are dropped.

    An episode belongs to its run id, not to a connection: it continues when a client disconnects, so that the client's
    retry finds it. Runs that failed or were aborted are forgotten and may be retried. A client that cannot use a
    response forgets it (`POST /done`), or asks under another run id.
    """

    def __init__(self, cache_bytes: int = DEFAULT_CACHE_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache_bytes, self._clock = cache_bytes, clock
        self._playing: dict[str, _Playing] = {}
        self._finished: collections.OrderedDict[str, _Finished] = collections.OrderedDict()
        self._bytes = 0

    @property
    def playing(self) -> int:
        """Episodes in flight."""
        return len(self._playing)

    async def response(self, request: RolloutRequest, play: Play) -> bytes:
        """The run's response, by `play` where it is new. Raises :class:`RunConflictError`, and what `play` raises."""
        self._drop_old()
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        known = self._finished.get(request.run_id) or self._playing.get(request.run_id)
        if known and known.digest != digest:
            raise RunConflictError(f"run_id {request.run_id!r} was used for a different request; choose another one")
        if isinstance(known, _Finished):
            self._finished.move_to_end(request.run_id)
            return known.response
        if known is None:
            known = _Playing(digest, asyncio.create_task(self._play(request, digest, play)))
            self._playing[request.run_id] = known
        return await asyncio.shield(known.task)

    def forget(self, run_id: str) -> bool:
        """Drop a finished run's response; whether there was one."""
        finished = self._finished.pop(run_id, None)
        if finished:
            self._bytes -= len(finished.response)
        return finished is not None

    async def stop(self) -> None:
        """End all episodes in flight; each returns what was played."""
        tasks = [playing.task for playing in self._playing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop_old(self) -> None:
        limit = self._clock() - KEEP_S
        for run_id in [run_id for run_id, finished in self._finished.items() if finished.ended < limit]:
            self.forget(run_id)

    async def _play(self, request: RolloutRequest, digest: str, play: Play) -> bytes:
        try:
            played = await play(request)
        finally:
            del self._playing[request.run_id]
        if played.keep:
            self._finished[request.run_id] = _Finished(digest, played.response, self._clock())
            self._bytes += len(played.response)
        while self._bytes > self._cache_bytes:
            self.forget(next(iter(self._finished)))
        return played.response
