"""Adapters by name: fetched once, kept, and compared with the name at every use."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.inference import KEY
from tests.support.trainer import StandInTrainer, named_by_content
from tests.unit.inference.conftest import BASE, OUT, RANK, filled, write_adapter
from visionrl.adapters import Manifest, Version, probe_job
from visionrl_inference.adapters.check import check_adapter
from visionrl_inference.adapters.resolver import AdapterSource
from visionrl_inference.adapters.store import ABANDONED_SECONDS, LOCK, Store
from visionrl_inference.fetch import FetchError, KeyRefusedError, trainer_client

pytestmark = pytest.mark.vision

WEIGHTS = "adapter_model.safetensors"


def source(trainer: StandInTrainer, root: Path, key: str = KEY) -> AdapterSource:
    return AdapterSource(
        "job",
        Store(root),
        # A stalled answer is given up soon; others are far from that on a busy machine, too.
        functools.partial(trainer_client, trainer.url, key, timeout_s=3.0),
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
    write_adapter(trainer.root / "adapters" / "draft", lora_B=filled(OUT, RANK, value=2.0))
    other = named_by_content(trainer.root / "adapters" / "draft", "job", 1)
    after = await fetched(adapters, other)
    assert (after / WEIGHTS).read_bytes() != (before / WEIGHTS).read_bytes()
    assert (after / WEIGHTS).read_bytes() == (trainer.root / "adapters" / other / WEIGHTS).read_bytes()


async def test_content_that_is_not_what_the_name_says_is_refused(
    trainer: StandInTrainer, name: str, tmp_path: Path
) -> None:
    adapters = source(trainer, tmp_path / "store")
    write_adapter(trainer.root / "adapters" / name, lora_B=filled(OUT, RANK, value=2.0))
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


async def test_the_engines_number_of_an_adapter_follows_from_its_name() -> None:
    """Whatever number an API server has counted to; model runner V2 keeps it in an int32, and 0 is no adapter."""
    import numpy as np
    from vllm.lora.request import LoRARequest

    from visionrl_inference.adapters.plugin import number_by_name

    class Engine:
        async def add_lora(self, request: LoRARequest) -> bool:
            numbers.append(request.lora_int_id)
            return True

    numbers: list[int] = []
    engine = Engine()
    number_by_name(engine)
    names = [f"job-v{number:06d}-0123456789ab" for number in range(1000)]
    for counted, name in enumerate([*names, *reversed(names)], start=1):
        await engine.add_lora(LoRARequest(name, counted, "/adapters"))
    assert numbers[:1000] == numbers[:999:-1]
    assert len(set(numbers)) == 1000
    assert min(numbers) >= 1
    assert np.array(numbers, np.int32).tolist() == numbers
