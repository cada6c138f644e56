"""Bits that flip in a checkpoint: the run resumes from the one before, and trains on nothing else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.training import TinyRun, weights
from visionrl.job import EnvSettings, Lora, TinyModel
from visionrl.tiny.model import build_tiny
from visionrl_trainer.model.policy import Policy

pytestmark = pytest.mark.vision

FLIPS_PER_FILE = 32


def test_no_flipped_bit_is_trained_on(tmp_path: Path) -> None:
    base = build_tiny(TinyModel(), EnvSettings(image_size=144), tmp_path)
    policy = Policy.load(base, "float32", torch.device("cpu"))
    policy.add_adapter(Lora(r=2, alpha=4), seed=0)
    run, learned = TinyRun(tmp_path / "run", policy), {}
    for _ in range(2):
        run.iterate()
        learned[run.state.version] = weights(policy), optimizer_sum(run)
    older, newest = learned
    files = [*(run.folder.checkpoints / newest).iterdir(), *(run.folder.adapters / newest).iterdir()]
    assert len(files) == 6
    chance, resumed_from = random.Random(1), set()
    for file in files:
        for flip in range(FLIPS_PER_FILE):
            copy = tmp_path / f"{file.parent.parent.name}-{file.name}-{flip}"
            shutil.copytree(tmp_path / "run", copy)
            flip_a_bit(copy / file.relative_to(tmp_path / "run"), chance)
            resumed = TinyRun(copy, policy)
            expected, moments = learned[resumed.state.version]
            assert torch.equal(weights(policy), expected), copy.name
            assert optimizer_sum(resumed) == moments, copy.name
            resumed_from.add(resumed.state.version)
            shutil.rmtree(copy)
    assert resumed_from == {older}


def flip_a_bit(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def optimizer_sum(run: TinyRun) -> float:
    """Of the second moments, in one order: another bit anywhere is another sum."""
    states = run.optimizer.state_dict()["state"].values()
    return sum(state["exp_avg_sq"].double().sum().item() for state in states)
