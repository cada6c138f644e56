"""A run's versions and checkpoints: whole or absent, resumable, and kept for as long as they are needed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import TinyRun, step, weights
from tests.unit.trainer.test_model import encoded
from visionrl.adapters import Version, verified_manifest
from visionrl.component import ConfigurationError
from visionrl.job import Lora
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Sample
from visionrl_trainer.state.checkpoints import NoWholeCheckpoint
from visionrl_trainer.sync.publish import AdapterStore

pytestmark = pytest.mark.vision


def test_a_manifest_names_size_and_digest_of_each_file(policy: Policy, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path, "crafter")
    version = store.publish(policy, 3)
    assert version.name.startswith("crafter-v000003-")
    assert version.matches(verified_manifest(store.folder(version)))
    name = version.name
    manifest_file = store.path(name, "manifest.json")
    assert manifest_file is not None
    manifest = json.loads(manifest_file.read_text())
    assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    for file, entry in manifest["files"].items():
        path = store.path(name, file)
        assert path is not None
        data = path.read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_only_published_files_of_this_job_can_be_asked_for(policy: Policy, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path, "crafter")
    name = store.publish(policy, 1).name
    (tmp_path / name / "secret").write_text("x")
    for asked in (
        (name, "secret"),
        ("..", "manifest.json"),
        ("other-v000001-0123456789ab", "manifest.json"),
        (name, "../x"),
    ):
        assert store.path(*asked) is None


def test_a_version_that_is_published_again_is_the_same_and_other_weights_are_another(
    policy: Policy, tmp_path: Path
) -> None:
    first = AdapterStore(tmp_path, "crafter").publish(policy, 1)
    assert AdapterStore(tmp_path, "crafter").publish(policy, 1) == first
    with torch.no_grad():
        next(parameter for _, parameter in policy.trainable()).add_(1)
    store = AdapterStore(tmp_path, "crafter")
    other = store.publish(policy, 1)
    assert (other.number, other.digest == first.digest) == (1, False)
    assert store.versions() == sorted([first, other])


def test_what_a_killed_process_left_is_swept_away(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / ".draft-4").mkdir()
    store = AdapterStore(tmp_path, "crafter")
    assert store.versions() == []
    version = store.publish(policy, 4)
    assert store.versions() == [version]


def test_a_resumed_run_takes_the_same_steps(policy: Policy, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, policy)
    run.iterate()
    step(policy, run.optimizer)
    expected, order = weights(policy), torch.randperm(10, generator=run.shuffle)

    resumed = TinyRun(tmp_path, policy)
    assert resumed.state == run.state
    step(policy, resumed.optimizer)
    assert torch.equal(weights(policy), expected)
    assert torch.equal(torch.randperm(10, generator=resumed.shuffle), order)


def test_a_checkpoint_is_that_of_its_moment_while_training_goes_on(policy: Policy, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, policy)
    run.iterate(checkpoint=False)
    snapshot = run.store.snapshot(run.state, policy, run.optimizer, run.shuffle)
    assert snapshot is not None
    step(policy, run.optimizer)
    expected = weights(policy)
    step(policy, run.optimizer)
    torch.randperm(10, generator=run.shuffle)
    run.store.checkpoint(snapshot)

    resumed = TinyRun(tmp_path, policy)
    assert resumed.state == run.state
    step(policy, resumed.optimizer)
    assert torch.equal(weights(policy), expected)
    assert resumed.store.snapshot(run.state, policy, run.optimizer, run.shuffle) is None


def test_what_is_served_is_rounded_and_what_is_trained_on_is_not(
    tiny_directory: Path, tmp_path: Path, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    """A step of a small learning rate is lost in bfloat16; a resumed run keeps it."""
    policy = Policy.load(tiny_directory, "bfloat16", torch.device("cpu"))
    policy.add_adapter(Lora(r=4, alpha=8), seed=0)
    run = TinyRun(tmp_path, policy)
    run.iterate()
    features, before = encoded(policy, frames), weights(policy)
    with torch.no_grad():
        trained, _ = policy.logprobs(samples, features, 1.0)
    folder = run.store.adapters.folder(Version.parse(run.state.version))
    served = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in served.values()} == {torch.bfloat16}
    policy.load_adapter(folder)
    assert not torch.equal(weights(policy), before)
    with torch.no_grad():
        assert torch.equal(policy.logprobs(samples, features, 1.0)[0], trained)
    TinyRun(tmp_path, policy)
    assert torch.equal(weights(policy), before)


def test_a_version_stays_while_a_checkpoint_or_a_rollout_needs_it(policy: Policy, tmp_path: Path) -> None:
    """Also where it is older than many that were published after the checkpoint."""
    run = TinyRun(tmp_path, policy, keep_checkpoints=1)
    run.iterate()
    played = run.state.version
    for _ in range(5):
        run.iterate(checkpoint=False)
    assert run.published() == [1, 6]

    resumed = TinyRun(tmp_path, policy, keep_checkpoints=1)
    resumed.store.prune({resumed.state.version})
    assert resumed.state.version == played
    assert resumed.store.adapters.path(played, "manifest.json") is not None
    resumed.iterate(playing=played)
    assert resumed.published() == [1, 7]
    resumed.store.prune({resumed.state.version})
    assert resumed.published() == [7]


def test_a_number_is_never_given_twice(policy: Policy, tmp_path: Path) -> None:
    """Not even where the versions that had them were pruned by one attempt, and the next one died at once."""
    run = TinyRun(tmp_path, policy)
    run.iterate()
    for _ in range(3):
        run.iterate(checkpoint=False)
    for _ in range(2):
        resumed = TinyRun(tmp_path, policy)
        resumed.store.prune({resumed.state.version})
    assert resumed.state.iteration == 1
    assert resumed.store.publish(policy).number == 5


@pytest.mark.parametrize("file", ["optimizer.pt", "state.json", "manifest.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_the_newest_whole_checkpoint_is_resumed_and_the_damaged_one_named(
    policy: Policy, tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = TinyRun(tmp_path, policy)
    run.iterate()
    good, expected = run.state, weights(policy)
    run.iterate()
    newest = run.checkpointed()[-1]
    spoil(newest / file if (newest / file).exists() else run.folder.adapters / newest.name / file, damage)

    resumed = TinyRun(tmp_path, policy)
    assert resumed.state == good
    assert torch.equal(weights(policy), expected)
    assert f"checkpoint {newest.name} is damaged and passed over" in caplog.text
    resumed.iterate()
    assert resumed.state.iteration == 2
    assert resumed.state.version != newest.name
    # The damaged one does not push a whole one out of those that are kept.
    assert [path.name for path in resumed.checkpointed()] == [good.version, resumed.state.version]


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(content[:-40] + bytes([content[-40] ^ 4]) + content[-39:])
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "delete":
            path.unlink()


def test_a_run_without_a_whole_checkpoint_is_not_begun_again_in_silence(policy: Policy, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, policy)
    run.iterate()
    for checkpoint in run.checkpointed():
        spoil(checkpoint / "optimizer.pt", "empty")
    for _ in range(2):  # neither now nor by the next attempt
        with pytest.raises(NoWholeCheckpoint, match=rf"no checkpoint is whole \({run.state.version}.*start over"):
            TinyRun(tmp_path, policy)


def test_a_checkpoint_that_cannot_be_read_now_is_left_where_it_is(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, policy)
    run.iterate()

    def fails(*arguments: object, **named: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("visionrl_trainer.state.run.torch.load", fails)
        with pytest.raises(OSError, match="Input/output error"):
            TinyRun(tmp_path, policy)
    assert TinyRun(tmp_path, policy).state == run.state


@pytest.mark.parametrize("folder", ["checkpoints", "adapters"])
def test_what_is_not_the_runs_own_is_passed_over(policy: Policy, tmp_path: Path, folder: str) -> None:
    run = TinyRun(tmp_path, policy)
    run.iterate()
    for stray in (".DS_Store", "Thumbs.db"):
        (tmp_path / folder / stray).write_bytes(b"x")
        (tmp_path / folder / run.state.version / stray).write_bytes(b"x")
    for stray in ("lost+found", f"{run.state.version}.bak", "other-v000009-0123456789ab", ".snapshot"):
        (tmp_path / folder / stray).mkdir()
    resumed = TinyRun(tmp_path, policy)
    assert resumed.state == run.state
    for _ in range(3):
        resumed.iterate()
    assert (tmp_path / folder / f"{run.state.version}.bak").exists()


def test_what_cannot_be_deleted_now_is_deleted_later(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: Path, *arguments: object, **named: object) -> None:
        if path.exists():
            raise OSError(39, "Directory not empty")
        raise FileNotFoundError(path)

    run = TinyRun(tmp_path, policy, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        patch.setattr("visionrl.folders.shutil.rmtree", busy)
        for _ in range(3):
            run.iterate()
    assert "is not deleted yet" in caplog.text
    assert run.published() == [3]
    assert TinyRun(tmp_path, policy, keep_checkpoints=1).state == run.state
    hidden = [path for folder in (run.folder.adapters, run.folder.checkpoints) for path in folder.glob(".*")]
    assert hidden == []


@pytest.mark.parametrize("again", [True, False])
def test_a_state_is_saved_once_and_never_deleted_first(
    policy: Policy, tmp_path: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, policy)
    run.checkpoint()
    kept = whole_checkpoints(run)

    def watched(action: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **named: object) -> object:
            found = action(*arguments, **named)
            assert whole_checkpoints(run) >= kept
            return found

        return act

    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    if not again:
        run.iterate()
    run.checkpoint()
    assert len(run.checkpointed()) == (1 if again else 2)


def whole_checkpoints(run: TinyRun) -> set[str]:
    return {path.name for path in run.checkpointed() if (path / "manifest.json").exists()}


def test_the_version_that_the_kl_term_compares_with_is_found_again_or_named(policy: Policy, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, policy)
    begun = run.state.version
    run.state = run.state.model_copy(update={"reference": begun})
    run.checkpoint()
    step(policy, run.optimizer)

    resumed = TinyRun(tmp_path, policy)
    policy.set_reference(resumed.store.reference(resumed.state))
    before = weights(policy)
    step(policy, resumed.optimizer)
    with policy.as_reference():
        assert torch.equal(weights(policy), before)
    assert not torch.equal(weights(policy), before)
    resumed.store.prune({begun})
    damage = resumed.store.adapters.root / begun / "adapter_model.safetensors"
    damage.write_bytes(damage.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigurationError, match=f"{begun}, the adapter after the warm start, .* cannot be read"):
        resumed.store.reference(resumed.state)
