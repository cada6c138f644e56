"""Adapters are retired in the order that keeps vLLM alive."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.adapters import Version
from visionrl_inference.adapters.retire import Retirement
from visionrl_inference.adapters.store import Store

pytestmark = pytest.mark.vision


class FakeServer:
    """vLLM's side: which adapters have a name, which are used; fails the test where a folder goes too early."""

    def __init__(self, store: Store) -> None:
        self.store, self.names, self.used = store, set[str](), set[str]()
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def loaded(self) -> set[str]:
        return set(self.names)

    def busy(self) -> set[str]:
        return set(self.used)

    def lock(self, name: str) -> asyncio.Lock:
        return self.locks[name]

    async def unload(self, name: str) -> None:
        self.names.remove(name)

    def load(self, version: int) -> str:
        name = version_name(version)
        self.store.folder(name).mkdir(exist_ok=True)
        self.names.add(name)
        return name

    def check(self) -> None:
        on_disk = self.store.names()
        assert self.names <= on_disk, "a loaded adapter lost its folder"
        assert self.used <= on_disk, "an adapter in use lost its folder"


def version_name(number: int) -> str:
    return Version("job", number, "0" * 12).name


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def retirement(root: Path, keep: int = 2) -> tuple[FakeServer, Clock, Retirement]:
    store, clock = Store(root), Clock()
    server = FakeServer(store)
    return server, clock, Retirement(server, store, keep, grace_s=10, clock=clock)


async def test_an_old_version_is_unloaded_then_deleted_a_grace_later(tmp_path: Path) -> None:
    server, clock, retire = retirement(tmp_path / "store")
    old = [server.load(version) for version in range(4)][:2]
    await retire.sweep()
    clock.now = 9
    await retire.sweep()
    assert len(server.names) == 4
    clock.now = 10
    await retire.sweep()
    assert server.names.isdisjoint(old)
    assert server.store.names() >= set(old)
    clock.now = 19
    await retire.sweep()
    assert server.store.names() >= set(old)
    clock.now = 20
    await retire.sweep()
    assert server.store.names() == {version_name(2), version_name(3)}


async def test_a_version_in_use_stays_however_old(tmp_path: Path) -> None:
    server, clock, retire = retirement(tmp_path / "store")
    oldest, *_ = [server.load(version) for version in range(4)]
    server.used.add(oldest)
    for clock.now in range(0, 100, 5):
        await retire.sweep()
    assert server.names == {oldest, version_name(2), version_name(3)}


async def test_a_run_that_counts_from_below_again_keeps_what_it_uses(tmp_path: Path) -> None:
    """After a lost run folder the server still has the versions of the earlier run, whose numbers are higher."""
    server, clock, retire = retirement(tmp_path / "store")
    for version in (5, 6):
        server.load(version)
    await retire.sweep()
    clock.now = 1
    for version in (0, 1):
        server.load(version)
    for clock.now in range(1, 100, 5):
        await retire.sweep()
    assert server.names == server.store.names() == {version_name(0), version_name(1)}


async def test_a_version_that_is_loaded_again_counts_as_used(tmp_path: Path) -> None:
    server, clock, retire = retirement(tmp_path / "store")
    oldest, *_ = [server.load(version) for version in range(4)]
    for clock.now in (0, 10):
        await retire.sweep()
    assert oldest not in server.names
    clock.now = 15
    server.load(0)
    for clock.now in range(15, 100, 5):
        await retire.sweep()
    assert oldest in server.names


async def test_a_version_that_is_being_resolved_is_left_alone(tmp_path: Path) -> None:
    server, clock, retire = retirement(tmp_path / "store")
    oldest, *_ = [server.load(version) for version in range(4)]
    await server.lock(oldest).acquire()
    for clock.now in range(0, 100, 5):
        await retire.sweep()
    assert oldest in server.names


@given(
    st.lists(
        st.tuples(st.sampled_from(["load", "use", "finish", "sweep"]), st.integers(0, 5), st.integers(0, 12)),
        max_size=60,
    )
)
def test_no_folder_goes_while_anything_can_still_ask_for_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    async def play() -> None:
        server, clock, retire = retirement(tmp_path_factory.mktemp("retire") / "store", keep=1)
        for action, version, seconds in steps:
            clock.now += seconds
            name = version_name(version)
            if action == "load":
                server.load(version)
            elif action == "use" and name in server.names:
                server.used.add(name)
            elif action == "finish":
                server.used.discard(name)
            else:
                await retire.sweep()
            server.check()

    asyncio.run(play())
