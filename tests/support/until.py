"""Waiting for what has no event, in a test of asyncio code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until it holds. The test's own time limit ends it otherwise."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
