"""Batches played in advance, and for how long the server had something to play."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("torch")

from visionrl_trainer.rollout import ahead
from visionrl_trainer.rollout.ahead import Rollouts


class Clock:
    """In place of ``time``; the test sets what it shows."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class StandIn:
    """A sampler whose batches end when the test says so."""

    def __init__(self) -> None:
        self.ends: dict[int, asyncio.Future[Any]] = {}

    async def collect(self, iteration: int, version: str) -> Any:
        self.ends[iteration] = asyncio.get_running_loop().create_future()
        await self.ends[iteration]
        return iteration, version


async def test_a_server_is_busy_while_any_batch_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sampler = Clock(), StandIn()
    monkeypatch.setattr(ahead, "time", clock)
    rollouts = Rollouts(sampler)  # type: ignore[arg-type]
    rollouts.start([0, 1], "v0")
    await asyncio.sleep(0)
    clock.now = 2.0
    assert rollouts.busy_seconds == 2.0
    sampler.ends[0].set_result(None)
    assert await rollouts.take(0, "v1") == (0, "v0")
    clock.now = 5.0
    sampler.ends[1].set_result(None)
    assert await rollouts.take(1, "v1") == (1, "v0")
    clock.now = 9.0
    assert rollouts.busy_seconds == 5.0
    rollouts.start([2], "v1")
    await asyncio.sleep(0)
    clock.now = 10.0
    await rollouts.close()
    clock.now = 12.0
    assert rollouts.busy_seconds == 6.0
