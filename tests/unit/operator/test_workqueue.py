"""The work queue: no key for two workers, none before its time, none lost."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from visionrl_operator.workqueue import ShutDown, WorkQueue

KEYS = st.sampled_from("abcd")
DELAYS = st.sampled_from([0.0, 0.1, 1.0, 5.0, 60.0])


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class QueueMachine(RuleBasedStateMachine):
    """Against a model: when each key is owed its next piece of work, and who has it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: WorkQueue[str] = WorkQueue(self.clock, first_delay=1.0, longest_delay=8.0)
        self.owed: dict[str, float] = {}
        self.active: set[str] = set()
        self.failures: dict[str, int] = {}

    def _owe(self, key: str, delay: float) -> None:
        self.owed[key] = min(self.owed.get(key, float("inf")), self.clock.now + delay)

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self._owe(key, 0)

    @rule(key=KEYS, delay=DELAYS)
    def add_after(self, key: str, delay: float) -> None:
        self.queue.add_after(key, delay)
        self._owe(key, delay)

    @rule(key=KEYS)
    def fail(self, key: str) -> None:
        failures = self.failures.get(key, 0)
        delay = self.queue.add_with_backoff(key)
        assert delay == min(8.0, 2.0**failures)
        self.failures[key] = failures + 1
        self._owe(key, delay)

    @rule(key=KEYS)
    def succeed(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)

    @rule(seconds=DELAYS)
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def take(self) -> None:
        key = self.queue.take()
        free = {key: due for key, due in self.owed.items() if key not in self.active and due <= self.clock.now}
        if key is None:
            assert not free, "a key that was due was not given out"
            return
        assert key not in self.active, "two workers have the key"
        assert key in free, "nobody asked for the key, or its time has not come"
        assert free[key] == min(free.values()), "another key has been due for longer"
        del self.owed[key]
        self.active.add(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.queue.done(key)
        self.active.remove(key)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.owed)
        assert self.queue.active == self.active

    def teardown(self) -> None:
        """Nothing is lost: what is owed comes in the end."""
        for key in list(self.active):
            self.queue.done(key)
        self.clock.now += 1000
        left = set()
        while (taken := self.queue.take()) is not None:
            left.add(taken)
            self.queue.done(taken)
        assert left == set(self.owed)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=200, stateful_step_count=40)


async def test_workers_wait_for_keys_and_for_their_time() -> None:
    queue: WorkQueue[str] = WorkQueue(time.monotonic)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("later", 0.05)
    assert await waiting == "later"

    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    queue.add("one")
    queue.add("two")
    assert {await first, await second} == {"one", "two"}


async def test_a_worker_that_waits_for_a_late_key_takes_an_early_one_first() -> None:
    queue: WorkQueue[str] = WorkQueue(time.monotonic)
    queue.add_after("late", 3600)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("early")
    assert await waiting == "early"


async def test_shutting_down_sends_all_workers_home() -> None:
    queue: WorkQueue[str] = WorkQueue(time.monotonic)
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.shut_down()
    queue.add("unwanted")
    for worker in workers:
        with pytest.raises(ShutDown):
            await worker
