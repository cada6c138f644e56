"""Adapters by name: fetched once, checked, and retired in the order that keeps vLLM alive."""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.inference import KEY
from tests.support.trainer import StandInTrainer
from tests.unit.inference.conftest import IN, MODULE, OUT, RANK, write_adapter
from visionrl_inference.adapters.check import AdapterError, check_adapter
from visionrl_inference.adapters.names import VersionNames
from visionrl_inference.adapters.resolver import AdapterSource
from visionrl_inference.adapters.retire import Retirement
from visionrl_inference.adapters.store import Store
from visionrl_inference.fetch import FetchError, KeyRefusedError, trainer_client

pytestmark = pytest.mark.vision

DIGEST = "0123456789ab"
BASE = {f"{MODULE}.weight": (OUT, IN)}


def source(trainer: StandInTrainer, root: Path, key: str = KEY) -> AdapterSource:
    return AdapterSource(
        VersionNames("job"),
        Store(root),
        functools.partial(trainer_client, trainer.url, key, timeout_s=0.5),
        functools.partial(check_adapter, base=BASE, max_rank=16),
    )


def named(version: int) -> str:
    """Name of a version of this job, whatever its content."""
    return f"job-v{version:06d}-{DIGEST}"


# --- names


@given(st.integers(0, 999_999))
def test_a_name_stands_for_its_version(version: int) -> None:
    assert VersionNames("job").version(named(version)) == version


@pytest.mark.parametrize(
    "name",
    [
        "job",
        "job-v000001",
        f"job-v1-{DIGEST}",
        f"job-v0000001-{DIGEST}",
        f"job-v00000a-{DIGEST}",
        f"job-v000001-{DIGEST}/..",
        f"../job-v000001-{DIGEST}",
        f"jobb-v000001-{DIGEST}",
        f"job-v00000１-{DIGEST}",
    ],
)
def test_no_other_name_stands_for_one(name: str) -> None:
    assert VersionNames("job").version(name) is None


def test_a_jobs_name_is_no_pattern() -> None:
    assert VersionNames("a.b").version(f"axb-v000001-{DIGEST}") is None


# --- fetching


async def test_an_adapter_is_fetched_once_and_kept(trainer: StandInTrainer, name: str, tmp_path: Path) -> None:
    adapters = source(trainer, tmp_path / "store")
    folder = await adapters.folder(name)
    assert folder == tmp_path / "store" / name
    assert await adapters.folder(name) == folder
    assert trainer.requests[f"/adapters/{name}/adapter_model.safetensors"] == 1
    original = trainer.root / "adapters" / name / "adapter_model.safetensors"
    assert (folder / "adapter_model.safetensors").read_bytes() == original.read_bytes()


async def test_concurrent_first_requests_share_one_download(trainer: StandInTrainer, name: str, tmp_path: Path) -> None:
    adapters = source(trainer, tmp_path / "store")
    folders = await asyncio.gather(*(adapters.folder(name) for _ in range(16)))
    assert len(set(folders)) == 1
    assert trainer.requests[f"/adapters/{name}/manifest.json"] == 1


async def test_a_caller_that_hangs_up_does_not_end_the_others_download(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    adapters = source(trainer, tmp_path / "store")
    first, second = (asyncio.create_task(adapters.folder(name)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == tmp_path / "store" / name


async def test_an_unknown_version_is_none_and_another_jobs_name_is_not_even_asked(
    trainer: StandInTrainer, tmp_path: Path
) -> None:
    adapters = source(trainer, tmp_path / "store")
    assert await adapters.folder(named(9)) is None
    assert await adapters.folder(f"other-v000001-{DIGEST}") is None
    assert set(trainer.requests) == {f"/adapters/{named(9)}/manifest.json"}


@pytest.mark.parametrize("fault", ["corrupt", "truncated", "stalled", "not_ready"])
async def test_a_bad_delivery_is_tried_again_and_leaves_nothing(
    trainer: StandInTrainer, name: str, tmp_path: Path, fault: str
) -> None:
    adapters = source(trainer, tmp_path / "store")
    trainer.fault = fault
    with pytest.raises(FetchError):
        await adapters.folder(name)
    assert trainer.requests[f"/adapters/{name}/manifest.json"] == 3
    assert list((tmp_path / "store").iterdir()) == []
    trainer.fault = ""
    assert await adapters.folder(name)


async def test_a_wrong_key_is_not_tried_again(trainer: StandInTrainer, name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyRefusedError):
        await source(trainer, tmp_path / "store", key="wrong").folder(name)
    assert trainer.requests.total() == 1


async def test_a_manifest_with_other_files_is_not_followed(trainer: StandInTrainer, name: str, tmp_path: Path) -> None:
    (trainer.root / "adapters" / name / "more.bin").write_bytes(b"1")
    with pytest.raises(FetchError, match=r"more\.bin"):
        await source(trainer, tmp_path / "store").folder(name)


async def test_a_new_process_trusts_nothing_that_an_earlier_one_left(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "store" / name)
    await source(trainer, tmp_path / "store").folder(name)
    assert trainer.requests[f"/adapters/{name}/adapter_model.safetensors"] == 1


# --- checking


def _tensor(*shape: int, value: float = 1.0) -> object:
    import torch

    return torch.full(shape, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_A": _tensor(RANK, IN, value=float("nan"))}, "not finite"),
        ({"lora_B": _tensor(OUT, RANK, value=float("inf"))}, "not finite"),
        ({"lora_A": _tensor(RANK + 1, IN)}, "not rank 4"),
        ({"lora_B": _tensor(OUT)}, "not rank 4"),
        ({"lora_B": None}, "only one of"),
        ({"lora_A": None, "lora_B": None}, "no tensors"),
        ({"lora_A": _tensor(RANK, IN + 1)}, "the base model's is"),
        ({"lora_C": _tensor(RANK, IN)}, "no LoRA matrix"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_adapter(tmp_path, **changes)
    with pytest.raises(AdapterError, match=message):
        check_adapter(tmp_path, BASE, max_rank=16)


def test_a_module_that_the_base_lacks_is_refused_unless_no_name_compares(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    write_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    other = {
        "base_model.model.other.lora_A.weight": torch.ones(4, 3),
        "base_model.model.other.lora_B.weight": torch.ones(5, 4),
    }
    save_file(load_file(path) | other, path)
    with pytest.raises(AdapterError, match="no module of the base model"):
        check_adapter(tmp_path, BASE, max_rank=16)
    check_adapter(tmp_path, {"renamed.weight": (1, 1)}, max_rank=16)


def test_a_rank_above_the_servers_and_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    with pytest.raises(AdapterError, match="1 to 2"):
        check_adapter(tmp_path, BASE, max_rank=2)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        check_adapter(tmp_path, BASE, max_rank=16)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        check_adapter(tmp_path, BASE, max_rank=16)


# --- retiring


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
        name = named(version)
        self.store.folder(name).mkdir(exist_ok=True)
        self.names.add(name)
        return name

    def check(self) -> None:
        on_disk = self.store.names()
        assert self.names <= on_disk, "a loaded adapter lost its folder"
        assert self.used <= on_disk, "an adapter in use lost its folder"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def retirement(root: Path, keep: int = 2) -> tuple[FakeServer, Clock, Retirement]:
    store, clock = Store(root), Clock()
    server = FakeServer(store)
    return server, clock, Retirement(server, store, VersionNames("job"), keep, grace_s=10, clock=clock)


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
    assert server.store.names() == {named(2), named(3)}


async def test_a_version_in_use_stays_however_old(tmp_path: Path) -> None:
    server, clock, retire = retirement(tmp_path / "store")
    oldest, *_ = [server.load(version) for version in range(4)]
    server.used.add(oldest)
    for clock.now in range(0, 100, 5):
        await retire.sweep()
    assert server.names == {oldest, named(2), named(3)}


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
            name = named(version)
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
