"""Episodes by run id: a repeated request gets the same episode, in flight or finished."""

from __future__ import annotations

import asyncio
import collections
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from visionrl.rollout import RolloutRequest

DEFAULT_CACHE_BYTES = 128 * 2**20


class RunConflictError(Exception):
    """The run id was used for a different request."""


@dataclass(frozen=True)
class _Finished:
    digest: str
    response: bytes


@dataclass(frozen=True)
class _Playing:
    digest: str
    task: asyncio.Task[bytes]


class Runs:
    """Plays each run once. Responses are kept while they fit into `cache_bytes`; the least recently used are dropped.

    An episode belongs to its run id, not to a connection: it continues when a client disconnects, so that the client's
    retry finds it. Failed runs are forgotten and may be retried.
    """

    def __init__(self, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._cache_bytes = cache_bytes
        self._playing: dict[str, _Playing] = {}
        self._finished: collections.OrderedDict[str, _Finished] = collections.OrderedDict()
        self._bytes = 0

    @property
    def playing(self) -> int:
        """Episodes in flight."""
        return len(self._playing)

    async def response(
        self, request: RolloutRequest, play: Callable[[RolloutRequest], Coroutine[None, None, bytes]]
    ) -> bytes:
        """The run's response, by `play` where it is new. Raises :class:`RunConflictError`, and what `play` raises."""
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

    async def _play(
        self, request: RolloutRequest, digest: str, play: Callable[[RolloutRequest], Coroutine[None, None, bytes]]
    ) -> bytes:
        try:
            response = await play(request)
        finally:
            del self._playing[request.run_id]
        self._finished[request.run_id] = _Finished(digest, response)
        self._bytes += len(response)
        while self._bytes > self._cache_bytes:
            _, dropped = self._finished.popitem(last=False)
            self._bytes -= len(dropped.response)
        return response
