"""Versions, checkpoints and the run folder: whole or absent, and resumable."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from visionrl.adapters import verified_manifest
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.state.checkpoints import Checkpoints, RunState
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.publish import AdapterStore

pytestmark = pytest.mark.vision


def step(policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer step with a gradient that depends on the weights."""
    optimizer.zero_grad()
    torch.stack([(parameter - 1).square().sum() for _, parameter in policy.trainable()]).sum().backward()
    optimizer.step()


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for _, parameter in policy.trainable()]).clone()


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
    (tmp_path / ".4").mkdir()
    store = AdapterStore(tmp_path, "crafter")
    assert store.versions() == []
    version = store.publish(policy, 4)
    assert store.versions() == [version]


def test_pruning_keeps_the_newest(policy: Policy, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path, "crafter")
    for number in range(4):
        store.publish(policy, number)
    store.prune(keep=2)
    assert [version.number for version in store.versions()] == [2, 3]


def test_a_resumed_run_takes_the_same_steps(policy: Policy, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    optimizer = adapter_optimizer(policy.trainable(), 1e-2, 0.0)
    shuffle = torch.Generator().manual_seed(5)
    step(policy, optimizer)
    torch.randperm(10, generator=shuffle)
    checkpoints.save(RunState(iteration=1, version=7), policy, optimizer, shuffle)
    step(policy, optimizer)
    expected, order = weights(policy), torch.randperm(10, generator=shuffle)

    resumed_optimizer = adapter_optimizer(policy.trainable(), 1e-2, 0.0)
    resumed_shuffle = torch.Generator()
    state = Checkpoints(tmp_path, keep=2).load(policy, resumed_optimizer, resumed_shuffle)
    assert state == RunState(iteration=1, version=7)
    step(policy, resumed_optimizer)
    assert torch.equal(weights(policy), expected)
    assert torch.equal(torch.randperm(10, generator=resumed_shuffle), order)


def test_a_half_written_checkpoint_is_not_resumed_from(policy: Policy, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    optimizer = adapter_optimizer(policy.trainable(), 1e-2, 0.0)
    for iteration in (1, 2, 3):
        checkpoints.save(RunState(iteration=iteration), policy, optimizer, torch.Generator())
    (tmp_path / ".draft").mkdir()
    again = Checkpoints(tmp_path, keep=2)
    assert [path.name for path in again.paths()] == ["000002", "000003"]
    state = again.load(policy, optimizer, torch.Generator())
    assert state is not None
    assert state.iteration == 3


def test_metrics_of_lost_iterations_are_dropped_and_cut_off_lines_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for iteration in (1, 2, 3):
        folder.metrics.append({"iteration": iteration})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 4, "rew')
    assert [record["iteration"] for record in folder.metrics.records()] == [1, 2, 3]
    folder.metrics.rewind(2)
    folder.metrics.append({"iteration": 3, "again": True})
    assert folder.metrics.records() == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "again": True}]
