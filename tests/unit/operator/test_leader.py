"""Leader election: never two leaders, a prompt successor."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.fake_api import FakeApi, client, failure
from visionrl_operator.leader import Leader, LostLease, Timing

TIMING = Timing(lease=15, renew_deadline=10, retry=2)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Election(RuleBasedStateMachine):
    """Two candidates with clocks of their own; one that does not renew in time has stepped down."""

    def __init__(self) -> None:
        super().__init__()
        self.server, self.clock = FakeApi(), Clock()
        self.leaders = [
            Leader(client(self.server), "default", name, "lease", timing=TIMING, clock=self.clock) for name in "ab"
        ]
        self.renewed: dict[int, float] = {}

    @rule(candidate=st.integers(0, 1), unreachable=st.booleans())
    def look(self, candidate: int, unreachable: bool) -> None:
        if unreachable:
            return
        if asyncio.run(self.leaders[candidate].try_once()):
            self.renewed[candidate] = self.clock.now
        else:
            self.renewed.pop(candidate, None)

    @rule(candidate=st.integers(0, 1))
    def release(self, candidate: int) -> None:
        asyncio.run(self.leaders[candidate].release())
        self.renewed.pop(candidate, None)

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0, 16.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def one_leads_at_most(self) -> None:
        working = [who for who, when in self.renewed.items() if self.clock.now - when < TIMING.renew_deadline]
        assert len(working) <= 1


TestElection = Election.TestCase
TestElection.settings = settings(max_examples=100, stateful_step_count=30)


async def test_a_lease_that_was_given_up_is_taken_at_once() -> None:
    server = FakeApi()
    first, second = (Leader(client(server), "default", name, "lease") for name in "ab")
    assert await first.try_once()
    assert not await second.try_once()
    await first.release()
    assert await second.try_once()
    assert not await first.try_once()
    [lease] = server.of("leases")
    assert lease["spec"]["holderIdentity"] == "b"


async def test_a_leader_that_cannot_renew_steps_down() -> None:
    server = FakeApi()
    timing = Timing(lease=0.3, renew_deadline=0.2, retry=0.02)
    leader = Leader(client(server), "default", "a", "lease", timing=timing)
    assert await leader.try_once()
    server.fault = lambda method, path: failure(403, "Forbidden")
    with pytest.raises(LostLease, match="not renewed"):
        await asyncio.wait_for(leader.hold(), 10)


async def test_a_leader_whose_request_hangs_steps_down() -> None:
    class Hanging(FakeApi):
        async def send(self, *arguments: Any, **more: Any) -> Any:
            if self.objects:
                await asyncio.Event().wait()
            return await super().send(*arguments, **more)

    leader = Leader(
        client(Hanging()), "default", "a", "lease", timing=Timing(lease=0.3, renew_deadline=0.2, retry=0.02)
    )
    server_leader = leader.try_once()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.gather(server_leader, leader.try_once()), 0.1)
    with pytest.raises(LostLease, match="not renewed"):
        await asyncio.wait_for(leader.hold(), 10)


async def test_a_leader_that_was_replaced_steps_down() -> None:
    server = FakeApi()
    leader = Leader(client(server), "default", "a", "lease", timing=Timing(lease=15, renew_deadline=10, retry=0.01))
    assert await leader.try_once()
    [lease] = server.of("leases")
    lease["spec"]["holderIdentity"] = "b"
    server.put("leases", lease)
    with pytest.raises(LostLease, match="b holds the lease"):
        await asyncio.wait_for(leader.hold(), 10)


QUICK = Timing(lease=15, renew_deadline=10, retry=0.001)


class Interrupted(FakeApi):
    """Does to the next renewal what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = 0
        self.at_first_renewal: Any = None

    async def send(self, method: str, path: str, *arguments: Any, **more: Any) -> Any:
        if method == "PUT":
            self.renewals += 1
            if self.renewals == 1:
                return await self.at_first_renewal(method, path, *arguments, **more)
        return await super().send(method, path, *arguments, **more)


async def keeps_leading(server: Interrupted) -> None:
    leader = Leader(client(server), "default", "me", "lease", timing=QUICK)
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    async with asyncio.timeout(30):
        while server.renewals < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not holding.done()
    holding.cancel()
    assert server.get("leases", "lease")["spec"]["holderIdentity"] == "me"


async def test_a_renewal_whose_answer_is_lost_is_not_a_lost_lease() -> None:
    server = Interrupted()

    async def lose_the_answer(*arguments: Any, **more: Any) -> Any:
        await FakeApi.send(server, *arguments, **more)
        raise OSError("connection reset by peer")

    server.at_first_renewal = lose_the_answer
    await keeps_leading(server)


async def test_somebody_elses_annotation_is_not_a_lost_lease() -> None:
    server = Interrupted()

    async def annotate_before(*arguments: Any, **more: Any) -> Any:
        server.put("leases", {**server.get("leases", "lease")})
        return await FakeApi.send(server, *arguments, **more)

    server.at_first_renewal = annotate_before
    await keeps_leading(server)


async def test_two_releases_in_one_namespace_lead_each_their_own_jobs() -> None:
    server = FakeApi()
    first = Leader(client(server), "ops", "a", "team-a-visionrl-operator")
    second = Leader(client(server), "ops", "b", "team-b-visionrl-operator")
    assert await first.try_once()
    assert await second.try_once()
