"""Copies of the trained policy: whole or none, resumed where they were cut off, checked byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file, save_file

from tests.support.jobs import job
from visionrl.adapters import MANIFEST, Version, verified_manifest, write_manifest
from visionrl.component import ComponentContext
from visionrl.trained import NothingTrained, newest
from visionrl_trainer.export import __main__ as exporter
from visionrl_trainer.export import hub
from visionrl_trainer.export.copy import ARRIVED, ExportError, copy_folder
from visionrl_trainer.export.merge import merge

LAYER = "model.language_model.layers.0.mlp.up_proj"


def adapter(folder: Path, factor: float = 1.0) -> Path:
    """An adapter on one layer, of rank 2 and alpha 4."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    down, up = torch.arange(6.0).reshape(2, 3), factor * torch.ones(4, 2)
    prefix = f"base_model.model.{LAYER}"
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    write_manifest(folder)
    return folder


def run_folder(root: Path, numbers: tuple[int, ...] = (1, 2)) -> list[Version]:
    """A run with so many checkpoints."""
    versions = []
    for number in numbers:
        draft = adapter(root / "adapters" / f"draft-{number}", number)
        version = Version.of("demo", number, verified_manifest(draft))
        draft.rename(draft.with_name(version.name))
        (root / "checkpoints" / version.name).mkdir(parents=True)
        versions.append(version)
    return versions


# --- which policy


def test_the_newest_whole_policy_is_taken(tmp_path: Path) -> None:
    older, newer = run_folder(tmp_path)
    assert newest(tmp_path, "demo").version == newer
    (tmp_path / "adapters" / newer.name / "adapter_config.json").write_text("damaged")
    assert newest(tmp_path, "demo").version == older
    with pytest.raises(NothingTrained):
        newest(tmp_path, "another")
    with pytest.raises(NothingTrained):
        newest(tmp_path / "nothing", "demo")


# --- copying


def test_a_copy_is_what_was_trained(tmp_path: Path) -> None:
    source = adapter(tmp_path / "adapter")
    manifest = copy_folder(source, str(tmp_path / "copy"))
    assert verified_manifest(tmp_path / "copy") == manifest == verified_manifest(source)
    assert not (tmp_path / "copy" / ARRIVED).exists()


def test_a_copy_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = adapter(tmp_path / "adapter"), tmp_path / "copy"
    put, sent = LocalFileSystem.put_file, list[str]()

    def cut_off(self: Any, source: str, target: str, **options: Any) -> None:
        if len(sent) == 1:
            raise ConnectionError("cut off")
        sent.append(Path(target).name)
        put(self, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", cut_off)
    with pytest.raises(ConnectionError):
        copy_folder(source, str(target))
    assert not (target / MANIFEST).exists(), "half a copy is none"
    first = list(sent)
    sent.append("and from now on")
    copy_folder(source, str(target))
    assert first[0] not in sent[2:], "what has arrived is not sent again"
    assert verified_manifest(target) == verified_manifest(source)
    sent[:] = ["one"]
    copy_folder(source, str(target))  # whole already: nothing is sent


def test_a_store_that_changes_what_it_stores_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = adapter(tmp_path / "adapter")

    def damage(self: Any, source: str, target: str, **options: Any) -> None:
        content = Path(source).read_bytes()
        Path(target).write_bytes(b"X" + content[1:])

    monkeypatch.setattr(LocalFileSystem, "put_file", damage)
    with pytest.raises(ExportError, match="is not what was written"):
        copy_folder(source, str(tmp_path / "copy"))
    assert not (tmp_path / "copy" / MANIFEST).exists()


def test_an_older_copy_is_none_while_it_is_replaced(tmp_path: Path) -> None:
    copy_folder(adapter(tmp_path / "one"), "memory://exports/crafter")
    copy_folder(adapter(tmp_path / "two", 2.0), "memory://exports/crafter")
    memory = fsspec.filesystem("memory")
    memory.get("exports/crafter/", str(tmp_path / "copy"), recursive=True)
    assert verified_manifest(tmp_path / "copy") == verified_manifest(tmp_path / "two")


def test_an_address_that_nothing_can_write_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nosuch://place"):
        copy_folder(adapter(tmp_path / "adapter"), "nosuch://place")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket in an object store of this machine's."""
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    settings = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "key", "ENDPOINT_URL": f"http://{host}:{port}"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3", skip_instance_cache=True).makedirs("models", exist_ok=True)
    yield "s3://models"
    store.stop()


def test_an_object_store_gets_a_copy_and_a_newer_one_in_its_place(tmp_path: Path, bucket: str) -> None:
    for number in (1, 2, 2):
        source = tmp_path / str(number)
        copy_folder(source if source.exists() else adapter(source, number), f"{bucket}/crafter/adapter")
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.get("models/crafter/adapter/", str(tmp_path / f"copy-{number}"), recursive=True)
        assert verified_manifest(tmp_path / f"copy-{number}") == verified_manifest(source)


def test_a_bucket_that_is_not_there_is_an_error_that_says_so(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        copy_folder(adapter(tmp_path / "adapter"), "s3://another/adapter")


def test_the_hub_gets_one_commit_in_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls["create"] = (repository, options)

        def upload_folder(self, **options: Any) -> None:
            calls["upload"] = options

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    hub.upload_folder(adapter(tmp_path / "adapter"), "hf://org/crafter/run-1", "a version")
    assert calls["create"] == ("org/crafter", {"private": True, "exist_ok": True})
    assert calls["upload"]["path_in_repo"] == "run-1"
    assert sorted(calls["upload"]["allow_patterns"]) == ["adapter_config.json", "adapter_model.safetensors", MANIFEST]


# --- the merged model


def base(folder: Path, name: str = LAYER) -> Path:
    folder.mkdir()
    weights = {f"{name}.weight": torch.full((4, 3), 100.0, dtype=torch.bfloat16), "lm_head.weight": torch.ones(2, 2)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def test_the_merged_model_is_the_base_with_the_update(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    merge(base(tmp_path / "base"), adapter(tmp_path / "adapter"), tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    # alpha / r = 2; B @ A sums the two rows of A.
    assert torch.equal(found[f"{LAYER}.weight"], (100 + 2 * torch.tensor([[3.0, 5.0, 7.0]])).expand(4, 3).bfloat16())
    assert torch.equal(found["lm_head.weight"], torch.ones(2, 2))
    assert verified_manifest(tmp_path / "merged").files.keys() == {"config.json", "model.safetensors"}


def test_a_layer_that_the_base_does_not_have_is_never_left_out(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(ExportError, match=LAYER):
        merge(base(tmp_path / "base", "another.layer"), adapter(tmp_path / "adapter"), tmp_path / "merged")


# --- the process


def test_the_exporter_copies_to_a_claim_and_tells_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "run")
    file, words = tmp_path / "job.json", tmp_path / "termination-log"
    words.touch()
    file.write_text(job({"storage.export": {"adapter": "pvc://results/crafter"}}).model_dump_json(by_alias=True))
    monkeypatch.setattr(exporter, "TERMINATION_LOG", words)
    variables = {
        "VISIONRL_JOB": str(file),
        "VISIONRL_RUN_DIR": str(tmp_path / "run"),
        "VISIONRL_CACHE_DIR": str(tmp_path / "cache"),
        "VISIONRL_EXPORT_DIR": str(tmp_path / "claims"),
    }
    exporter._export(ComponentContext(variables))
    manifest = verified_manifest(tmp_path / "claims" / "results" / "crafter")
    from visionrl_core.report import read_copies

    version, [copy] = read_copies(words.read_bytes())
    assert version == newest(tmp_path / "run", "demo").version.name
    assert (copy.to, copy.digest, copy.bytes) == ("pvc://results/crafter", manifest.digest, manifest.size)
