"""Old adapters go: unloaded when idle, deleted an idle grace later.

The order matters: vLLM reads an adapter's folder again when it comes back from its cache, and ends where the folder is
gone. So a version first loses its name, and its folder is deleted once no request that still had it can be left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from visionrl_inference.adapters.store import Store

logger = logging.getLogger("vllm.visionrl")

SWEEP_SECONDS = 2.0
GRACE_SECONDS = 60.0


class Server(Protocol):
    """What retirement needs to know of and do to vLLM."""

    def loaded(self) -> set[str]:
        """Adapters that vLLM knows by name."""

    def busy(self) -> set[str]:
        """Adapters of unfinished requests."""

    def lock(self, name: str) -> asyncio.Lock:
        """Held by vLLM while it resolves the name."""

    async def unload(self, name: str) -> None:
        """Forget the name."""


class Retirement:
    """Keeps the adapters that are used, and of the others the ``keep`` that were loaded or used last.

    Their numbers say nothing here: a run that begins anew, or goes back to its last checkpoint, counts from below.
    """

    def __init__(
        self,
        server: Server,
        store: Store,
        keep: int,
        grace_s: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server, self.store, self.keep, self.grace_s, self.clock = server, store, keep, grace_s, clock
        self._loaded: set[str] = set()
        """Names that vLLM knew at the last sweep."""
        self._last_used: dict[str, float] = {}
        """When a sweep last saw an adapter used, newly loaded or, for one without a name, unloaded."""

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Sweep for ever; an error is logged and the next sweep tries again."""
        while True:
            await sleep(SWEEP_SECONDS)
            try:
                await asyncio.to_thread(self.store.heartbeat)
                await self.sweep()
            except Exception:
                logger.exception("retiring old adapters failed; trying again")

    async def sweep(self) -> None:
        """One pass: each surplus adapter that was idle for the grace takes its next step."""
        loaded, busy, stored = self.server.loaded(), self.server.busy(), self.store.names()
        self._notice(loaded, busy, stored)
        by_last_use = sorted(loaded - busy, key=lambda name: (self._last_used[name], name))
        for name in by_last_use[: -self.keep]:
            if self._is_idle(name):
                await self.server.unload(name)
                self._last_used[name] = self.clock()
        for name in stored - loaded:
            if self._is_idle(name):
                await self._remove(name)

    def _notice(self, loaded: set[str], busy: set[str], stored: set[str]) -> None:
        now, known = self.clock(), loaded | stored
        used = (loaded - self._loaded) | busy | (known - self._last_used.keys())
        self._last_used = {name: now if name in used else self._last_used[name] for name in known}
        self._loaded = loaded

    def _is_idle(self, name: str) -> bool:
        return self.clock() - self._last_used[name] >= self.grace_s and not self.server.lock(name).locked()

    async def _remove(self, name: str) -> None:
        async with self.server.lock(name):
            if name in self.server.loaded() | self.server.busy():
                return
            await asyncio.to_thread(self.store.remove, name)
        logger.info("removed adapter %s", name)
