"""Batches in the order of their iterations, some of them played in advance."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from visionrl_trainer.rollout.sampler import Batch, Sampler


class Rollouts:
    """Plays an iteration's batch on request, or in advance, during an earlier iteration's update."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._tasks: dict[int, asyncio.Task[Batch]] = {}
        self._versions: dict[int, str] = {}

    @property
    def versions(self) -> set[str]:
        """Versions of the batches that are under way or wait to be taken."""
        return set(self._versions.values())

    async def take(self, iteration: int, version: str) -> Batch:
        """The iteration's batch, played by ``version`` unless it was started earlier."""
        self.start([iteration], version)
        batch = await self._tasks.pop(iteration)
        del self._versions[iteration]
        return batch

    def start(self, iterations: Iterable[int], version: str) -> None:
        """Start the iterations that are not running yet, with this version."""
        for iteration in iterations:
            if iteration not in self._tasks:
                self._versions[iteration] = version
                self._tasks[iteration] = asyncio.create_task(self.sampler.collect(iteration, version))

    async def close(self) -> None:
        """Cancel all running batches."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
