"""Where the base model comes from, and what happens while it is not there yet."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from pathlib import Path

import aiohttp
import pytest

from tests.support.inference import KEY, tiny_job
from tests.support.ports import free_port
from tests.support.trainer import StandInTrainer
from visionrl.adapters import write_manifest
from visionrl.base_model import ModelError
from visionrl_inference.base_model import fetch_base, resolve_base_model
from visionrl_inference.fetch import trainer_client

WARM = {"training": {"iterations": 1, "warmStart": {"episodes": 1, "steps": 1}}}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def no_trainer() -> aiohttp.ClientSession:
    raise AssertionError("this job needs no trainer for its base")


def test_a_warm_started_base_is_fetched_once_and_kept_by_its_digest(trainer: StandInTrainer, tmp_path: Path) -> None:
    connect = functools.partial(trainer_client, trainer.url, KEY)
    folder = resolve_base_model(tiny_job(**WARM), tmp_path / "cache", connect)
    assert (folder / "model.safetensors").read_bytes() == (trainer.root / "base" / "model.safetensors").read_bytes()
    assert resolve_base_model(tiny_job(**WARM), tmp_path / "cache", connect) == folder
    assert trainer.requests["/base/model.safetensors"] == 1
    (trainer.root / "base" / "config.json").write_text('{"another": "model"}')
    assert resolve_base_model(tiny_job(**WARM), tmp_path / "cache", connect) != folder


async def test_a_damaged_copy_is_fetched_again(trainer: StandInTrainer, cache: Path) -> None:
    connect = functools.partial(trainer_client, trainer.url, KEY)
    folder = await fetch_base(connect, cache)
    (folder / "model.safetensors").write_bytes(b"half")
    assert await fetch_base(connect, cache) == folder
    assert (folder / "model.safetensors").stat().st_size == 7000
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


async def test_another_model_by_the_same_name_is_not_taken_for_it(trainer: StandInTrainer, cache: Path) -> None:
    """Whole in itself, with a manifest of its own, and not what the trainer serves."""
    connect = functools.partial(trainer_client, trainer.url, KEY)
    folder = await fetch_base(connect, cache)
    (folder / "model.safetensors").write_bytes(b"another")
    write_manifest(folder)
    assert await fetch_base(connect, cache) == folder
    assert (folder / "model.safetensors").stat().st_size == 7000


async def test_servers_that_fetch_at_once_end_with_one_copy(trainer: StandInTrainer, cache: Path) -> None:
    connect = functools.partial(trainer_client, trainer.url, KEY)
    folders = await asyncio.gather(*(fetch_base(connect, cache) for _ in range(3)))
    (folder,) = set(folders)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


async def test_it_waits_while_the_trainer_trains_and_through_bad_deliveries(
    trainer: StandInTrainer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter(["not_ready", "truncated", "corrupt", ""])
    trainer.fault = next(faults)

    async def next_fault(_: float) -> None:
        trainer.fault = next(faults)

    connect = functools.partial(trainer_client, trainer.url, KEY)
    with caplog.at_level(logging.INFO):
        folder = await fetch_base(connect, cache, sleep=next_fault)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert "waiting for the trainer's base model (0 s): /base/manifest.json: the trainer is not ready" in caplog.text


async def test_it_waits_while_nobody_listens(trainer: StandInTrainer, cache: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as later:

        async def trainer_comes_up(_: float) -> None:
            later.enter_context(StandInTrainer(trainer.root, KEY, port))

        connect = functools.partial(trainer_client, f"http://127.0.0.1:{port}", KEY)
        assert (await fetch_base(connect, cache, sleep=trainer_comes_up)).is_dir()


async def test_a_trainer_without_a_base_or_with_another_key_ends_the_wait(trainer: StandInTrainer, cache: Path) -> None:
    async def at_once(_: float) -> None: ...

    with pytest.raises(ModelError, match="VISIONRL_KEY_FILE"):
        await fetch_base(functools.partial(trainer_client, trainer.url, "wrong"), cache, sleep=at_once)
    (trainer.root / "base").rename(trainer.root / "elsewhere")
    with pytest.raises(ModelError, match="warmStart"):
        await fetch_base(functools.partial(trainer_client, trainer.url, KEY), cache, sleep=at_once)


async def test_a_former_trainer_with_a_former_key_is_outwaited(trainer: StandInTrainer, cache: Path) -> None:
    client = trainer_client(trainer.url, "former")

    async def trainer_is_replaced(_: float) -> None:
        client.headers["Authorization"] = f"Bearer {KEY}"

    assert (await fetch_base(lambda: client, cache, sleep=trainer_is_replaced)).is_dir()


def test_a_path_is_used_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    job = tiny_job(model={"base": str(tmp_path)})
    assert resolve_base_model(job, tmp_path / "cache", no_trainer) == tmp_path


@pytest.mark.parametrize("make", [False, True])
def test_a_path_that_is_no_model_is_an_error_that_names_the_field(tmp_path: Path, make: bool) -> None:
    path = tmp_path / "model"
    if make:
        path.mkdir()
    with pytest.raises(ModelError, match=r"spec\.model\.base: .*model"):
        resolve_base_model(tiny_job(model={"base": str(path)}), tmp_path / "cache", no_trainer)


@pytest.mark.vision
def test_the_tiny_model_is_built_in_the_cache(tmp_path: Path) -> None:
    folder = resolve_base_model(tiny_job(), tmp_path / "cache", no_trainer)
    assert folder.parent == tmp_path / "cache"
    assert (folder / "model.safetensors").is_file()
