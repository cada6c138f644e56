"""Writing to disk while training goes on."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class BackgroundWriter:
    """A thread for one write at a time. A process that ends waits for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._write: asyncio.Future[None] | None = None

    def start(self, write: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Begin a write; the one before must have :meth:`finished`."""
        assert self._write is None, "one write at a time"
        run = functools.partial(write, *arguments, **named)
        self._write = asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def finished(self) -> None:
        """Return when nothing is being written. Raises what the write raised, to all who wait for it."""
        if (write := self._write) is None:
            return
        try:
            await asyncio.shield(write)  # one who stops to wait leaves it to the others
        finally:
            if write.done() and self._write is write:
                self._write = None

    async def close(self) -> None:
        """Wait for the write; its error is logged, for another one may have ended the run."""
        try:
            await self.finished()
        except Exception as error:
            logger.error("the last write failed: %s: %s", type(error).__name__, error)
        self._thread.shutdown(wait=False)
