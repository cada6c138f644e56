"""Watches that stall: noticed, put right, and ended when they stay silent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_api import FakeApi, answer, client, failure
from tests.support.jobs import document
from visionrl_core.kinds import JOB, OWNED_KINDS
from visionrl_core.manifests.common import Ref
from visionrl_operator.api import ApiError
from visionrl_operator.store import Key, Store
from visionrl_operator.watchdog import Stalled, Watchdog

SERVICE = OWNED_KINDS["Service"]
DEMO = Key("default", "demo")


class World:
    def __init__(self) -> None:
        self.server, self.store, self.missed = FakeApi(), Store(), {}  # type: ignore[var-annotated]
        self.slept: list[float] = []
        self.while_asleep: list[Any] = []
        self.dog = Watchdog(client(self.server), self.store, (), self._count, self._sleep)

    def _count(self, kind: str, count: int) -> None:
        self.missed[kind] = self.missed.get(kind, 0) + count

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.while_asleep:
            self.while_asleep.pop(0)()

    def service(self, name: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "default", "labels": {"visionrl.dev/job": "demo"}}
        return self.server.put("services", {"kind": "Service", "metadata": metadata})

    def has(self, name: str) -> bool:
        return Ref("Service", name) in self.store.owned(DEMO)


async def test_all_is_well() -> None:
    world = World()
    world.service("a")
    world.server.deliver(world.store)
    for _ in range(3):
        await world.dog.check(SERVICE, grace=10)
    assert not world.missed
    assert not world.slept


async def test_news_that_are_on_their_way_are_waited_for() -> None:
    world = World()
    world.service("a")
    world.while_asleep = [lambda: world.server.deliver(world.store)]
    await world.dog.check(SERVICE, grace=10)
    assert world.slept == [10]
    assert not world.missed


async def test_what_a_watch_did_not_tell_is_put_right() -> None:
    world = World()
    gone = world.service("gone")
    world.server.deliver(world.store)
    world.service("new")
    del world.server.objects["services", "default", "gone"]
    await world.dog.check(SERVICE, grace=10)
    assert world.has("new")
    assert not world.has("gone")
    assert world.missed == {"Service": 2}
    world.store.feed("Service", gone)
    assert not world.has("gone"), "a late event does not bring it back"


async def test_a_watch_that_stays_silent_ends_the_process() -> None:
    world = World()
    world.service("a")
    await world.dog.check(SERVICE, grace=10)
    world.service("b")
    with pytest.raises(Stalled, match="services"):
        await world.dog.check(SERVICE, grace=10)


async def test_one_miss_now_and_then_does_not() -> None:
    world = World()
    for name in "abc":
        world.service(name)
        await world.dog.check(SERVICE, grace=10)
        await world.dog.check(SERVICE, grace=10)


async def test_an_object_that_is_newer_than_the_list_is_not_gone() -> None:
    world = World()
    listed = world.server._list("services", None)
    world.server.revision += 5
    world.service("just-made")
    world.server.deliver(world.store)
    world.server.fault = lambda method, path: answer(200, listed) if "/services" in path else None
    await world.dog.check(SERVICE, grace=10)
    assert world.has("just-made")


async def test_an_object_that_ended_after_the_list_is_not_brought_back() -> None:
    world = World()
    body = world.service("a")
    world.server.deliver(world.store)
    world.store.remove("Service", body)
    await world.dog.check(SERVICE, grace=10)
    assert not world.has("a")
    assert not world.missed


async def test_what_exists_is_known_at_once() -> None:
    world = World()
    found = document()
    found["metadata"]["namespace"] = "default"
    world.server.put("visionrljobs", found)
    world.service("a")
    await world.dog.list_everything()
    assert world.store.job(DEMO) is not None
    assert world.has("a")


async def test_a_list_that_is_refused_waits_for_the_next_round() -> None:
    world = World()
    world.server.fault = lambda method, path: failure(403, "Forbidden")
    with pytest.raises(ApiError):
        await world.dog.check(JOB, grace=1)
