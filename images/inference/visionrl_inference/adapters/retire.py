"""Old adapters go: unloaded when idle, deleted an idle grace later.

The order matters: vLLM reads an adapter's folder again when it comes back from its cache, and dies where the folder is
gone. So a version first loses its name, and its folder is deleted once no request that still had it can be left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from visionrl_inference.adapters.names import VersionNames
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
    """Keeps the newest ``keep`` versions, and older ones while they are used."""

    def __init__(
        self,
        server: Server,
        store: Store,
        names: VersionNames,
        keep: int,
        grace_s: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server, self.store, self.names, self.keep, self.grace_s, self.clock = (
            server,
            store,
            names,
            keep,
            grace_s,
            clock,
        )
        self._idle_since: dict[str, float] = {}

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Sweep for ever; an error is logged and the next sweep goes on."""
        while True:
            await sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:
                logger.exception("retiring old adapters failed; trying again")

    async def sweep(self) -> None:
        """One pass: each old version that was idle for the grace takes its next step."""
        now, busy = self.clock(), self.server.busy()
        for name in self._old():
            idle_since = self._idle_since.setdefault(name, now)
            if name in busy:
                self._idle_since[name] = now
            elif now - idle_since >= self.grace_s and not self.server.lock(name).locked():
                await self._step(name)

    def _old(self) -> list[str]:
        """Versions beyond the newest ``keep``, oldest first."""
        versions = {name: self.names.version(name) for name in self.server.loaded() | self.store.names()}
        ours = sorted((version, name) for name, version in versions.items() if version is not None)
        return [name for _, name in ours[: -self.keep]]

    async def _step(self, name: str) -> None:
        if name in self.server.loaded():
            await self.server.unload(name)
            self._idle_since[name] = self.clock()
            return
        async with self.server.lock(name):
            if name in self.server.loaded() | self.server.busy():
                return
            await asyncio.to_thread(self.store.remove, name)
        self._idle_since.pop(name, None)
        logger.info("removed adapter %s", name)
