"""Adapters by name: fetched once, compared with the name at every use, checked, and retired in the order that keeps
vLLM alive."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.inference import KEY
from tests.support.trainer import StandInTrainer, named_by_content
from tests.unit.inference.conftest import CONFIG, IN, MODULE, OUT, RANK, write_adapter
from visionrl.adapters import Manifest, Version, probe_job
from visionrl_inference.adapters.check import AdapterError, check_adapter
from visionrl_inference.adapters.resolver import AdapterSource
from visionrl_inference.adapters.retire import Retirement
from visionrl_inference.adapters.store import ABANDONED_SECONDS, LOCK, Store
from visionrl_inference.fetch import FetchError, KeyRefusedError, trainer_client

pytestmark = pytest.mark.vision

BASE = {f"{MODULE}.weight": (OUT, IN)}
WEIGHTS = "adapter_model.safetensors"


def source(trainer: StandInTrainer, root: Path, key: str = KEY) -> AdapterSource:
    return AdapterSource(
        "job",
        Store(root),
        functools.partial(trainer_client, trainer.url, key, timeout_s=0.5),
        functools.partial(check_adapter, base=BASE, max_rank=16),
    )


async def fetched(adapters: AdapterSource, name: str) -> Path:
    folder = await adapters.folder(name)
    assert folder is not None
    return folder


def in_store(adapters: AdapterSource) -> set[str]:
    """All that lies in the server's folder, drafts included."""
    return {path.name for path in adapters.store.root.iterdir()} - {LOCK}


# --- fetching


async def test_an_adapter_is_fetched_once_and_kept(trainer: StandInTrainer, name: str, tmp_path: Path) -> None:
    adapters = source(trainer, tmp_path / "store")
    folder = await fetched(adapters, name)
    assert await adapters.folder(name) == folder
    assert trainer.requests[f"/adapters/{name}/{WEIGHTS}"] == 1
    original = trainer.root / "adapters" / name
    assert (folder / WEIGHTS).read_bytes() == (original / WEIGHTS).read_bytes()
    assert adapters.digests == {name: Manifest.of_folder(original).digest}


async def test_another_content_is_another_adapter_whatever_its_number(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    """A run that lost its folder, or another run of the job's name, publishes a version 1 of its own."""
    adapters = source(trainer, tmp_path / "store")
    before = await fetched(adapters, name)
    write_adapter(trainer.root / "adapters" / "draft", lora_B=_tensor(OUT, RANK, value=2.0))
    other = named_by_content(trainer.root / "adapters" / "draft", "job", 1)
    after = await fetched(adapters, other)
    assert (after / WEIGHTS).read_bytes() != (before / WEIGHTS).read_bytes()
    assert (after / WEIGHTS).read_bytes() == (trainer.root / "adapters" / other / WEIGHTS).read_bytes()


async def test_content_that_is_not_what_the_name_says_is_refused(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    adapters = source(trainer, tmp_path / "store")
    write_adapter(trainer.root / "adapters" / name, lora_B=_tensor(OUT, RANK, value=2.0))
    with pytest.raises(FetchError, match="other content by this name"):
        await adapters.folder(name)
    assert in_store(adapters) == set()


async def test_an_adapter_that_was_damaged_on_disk_is_fetched_again(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    adapters = source(trainer, tmp_path / "store")
    folder = await fetched(adapters, name)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert await adapters.folder(name) == folder
    assert (folder / WEIGHTS).read_bytes() == whole
    (folder / "adapter_config.json").unlink()
    assert await adapters.folder(name) == folder
    assert trainer.requests[f"/adapters/{name}/{WEIGHTS}"] == 3
    assert in_store(adapters) == {name}


async def test_the_probe_is_an_adapter_of_the_job(trainer: StandInTrainer, name: str, tmp_path: Path) -> None:
    shutil.copytree(trainer.root / "adapters" / name, trainer.root / "adapters" / "draft")
    probe = named_by_content(trainer.root / "adapters" / "draft", probe_job("job"), 0)
    assert await source(trainer, tmp_path / "store").folder(probe)


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
    assert await second == adapters.store.folder(name)


async def test_an_unknown_version_is_none_and_what_is_no_version_of_this_job_is_not_even_asked_for(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    adapters, digest = source(trainer, tmp_path / "store"), name.rpartition("-")[2]
    assert await adapters.folder(f"job-v000009-{digest}") is None
    for other in (
        *("job", "job-v000001", f"job-v1-{digest}", f"job-v000001-{digest.upper()}", f"{name}\n", f"{name}/.."),
        *(f"../{name}", f"x/../{name}", f"other-v000001-{digest}", f"job-v00000１-{digest}", ""),
    ):
        assert await adapters.folder(other) is None, other
    assert set(trainer.requests) == {f"/adapters/job-v000009-{digest}/manifest.json"}


@pytest.mark.parametrize("fault", ["corrupt", "truncated", "stalled", "not_ready"])
async def test_a_bad_delivery_is_tried_again_and_leaves_nothing(
    trainer: StandInTrainer, name: str, tmp_path: Path, fault: str
) -> None:
    adapters = source(trainer, tmp_path / "store")
    trainer.fault = fault
    with pytest.raises(FetchError):
        await adapters.folder(name)
    assert trainer.requests[f"/adapters/{name}/manifest.json"] == 3
    assert in_store(adapters) == set()
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


# --- keeping


async def test_servers_that_share_a_cache_leave_each_others_adapters_alone(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    first = source(trainer, tmp_path)
    folder = await fetched(first, name)
    second = source(trainer, tmp_path)
    assert await fetched(second, name) != folder
    second.store.remove(name)
    assert first.store.digest(Version.parse(name))


OWNER = "import sys; from pathlib import Path; from visionrl_inference.adapters.store import Store; "


def leave_a_folder(root: Path) -> Path:
    """The folder of a server process that has ended, as nothing but its end leaves it."""
    code = OWNER + "print(Store(Path(sys.argv[1])).root)"
    return Path(
        subprocess.run([sys.executable, "-c", code, str(root)], check=True, stdout=-1, text=True).stdout.strip()
    )


def age(folder: Path) -> None:
    past = (folder / LOCK).stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(folder / LOCK, (past, past))


def test_the_folder_of_a_server_that_is_gone_is_deleted_after_a_while(tmp_path: Path) -> None:
    gone = leave_a_folder(tmp_path)
    Store(tmp_path)
    assert gone.is_dir()
    age(gone)
    Store(tmp_path)
    assert not gone.exists()


def test_a_silent_server_keeps_its_folder_by_its_lock_and_one_without_locks_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Store(tmp_path)
    age(silent.root)
    with monkeypatch.context() as patch:

        def unsupported(*_: object) -> None:
            raise OSError("no locks here")

        patch.setattr("fcntl.flock", unsupported)
        without_locks = Store(tmp_path)
    age(without_locks.root)
    without_locks.heartbeat()
    Store(tmp_path)
    assert silent.root.is_dir()
    assert without_locks.root.is_dir()
    age(without_locks.root)
    Store(tmp_path)
    assert not without_locks.root.exists()


def test_what_else_lies_in_the_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "file").write_text("")
    Store(tmp_path)
    assert (tmp_path / "somebody's").is_dir()
    assert (tmp_path / "file").is_file()


# --- checking


def _tensor(*shape: int, value: float = 1.0) -> Any:
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
        ({"lora_B": _tensor(OUT, RANK, value=1e30)}, "beyond 10000"),
        ({"lora_B": _tensor(OUT, RANK, value=-1e30)}, "beyond 10000"),
        ({"lora_A": _tensor(RANK, IN).int()}, "no matrix of floating-point numbers"),
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 1e308),
        ("lora_alpha", 0),
        ("lora_alpha", -5),
        ("lora_alpha", True),
        ("lora_alpha", "8"),
        ("lora_alpha", None),
        ("r", True),
        ("r", 4.0),
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("use_dora", True),
        ("use_rslora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 99}),
        ("alpha_pattern", {"q_proj": 99}),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 1]]),
        ("a_key_of_tomorrow", True),
    ],
)
def test_a_configuration_that_changes_what_is_computed_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_adapter(tmp_path)
    check_adapter(tmp_path, BASE, max_rank=16)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {key: value}))
    with pytest.raises(AdapterError, match="rank" if key == "r" else key):
        check_adapter(tmp_path, BASE, max_rank=16)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"r": 4' + " " * 100_000 + "}", "{", ""])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
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
