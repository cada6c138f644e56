"""Batches played in advance."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("torch")

from visionrl_trainer.rollout.ahead import Rollouts


class StandIn:
    """A sampler whose batches end when the test says so."""

    def __init__(self) -> None:
        self.ends: dict[int, asyncio.Future[Any]] = {}

    async def collect(self, iteration: int, version: str) -> Any:
        self.ends[iteration] = asyncio.get_running_loop().create_future()
        await self.ends[iteration]
        return iteration, version


async def test_a_batch_in_advance_is_of_the_version_that_began_it() -> None:
    sampler = StandIn()
    rollouts = Rollouts(sampler)  # type: ignore[arg-type]
    rollouts.start([0, 1], "v0")
    await asyncio.sleep(0)
    sampler.ends[0].set_result(None)
    assert await rollouts.take(0, "v1") == (0, "v0")
    assert rollouts.versions == {"v0"}
    sampler.ends[1].set_result(None)
    assert await rollouts.take(1, "v1") == (1, "v0")
    rollouts.start([2], "v1")
    assert rollouts.versions == {"v1"}
    await asyncio.sleep(0)
    await rollouts.close()
    assert sampler.ends[2].cancelled()
