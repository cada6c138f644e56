"""All 4.4 billion parameters take a step: for a GPU, or by hand for a CPU with 40 GB of memory and some patience:

VISIONRL_FULL_SHAPE=1 python -m pytest tests/component/trainer/test_full_shape.py -m gpu
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.prompts import qwen_batch
from tests.support.true_width import full_policy
from visionrl.jobfile import load_job
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.update import update

pytestmark = [pytest.mark.gpu, pytest.mark.vision, pytest.mark.slow]

FILE = Path(__file__).parents[3] / "configs" / "crafter-qwen3vl-4b.yaml"
GIB = 1 << 30


@pytest.mark.skipif(
    not torch.cuda.is_available() and "VISIONRL_FULL_SHAPE" not in os.environ, reason="needs a GPU, or 40 GB and time"
)
def test_the_published_shape_takes_a_step_within_24_gib(tmp_path: Path) -> None:
    spec = load_job(FILE).spec
    policy = full_policy(tmp_path / "model", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert 4.4e9 < sum(weight.numel() for weight in policy.model.parameters()) < 4.5e9
    policy.add_adapter(spec.model.lora, seed=0)
    size, temperature = spec.rollout.env_config.image_size, spec.rollout.policy_config.temperature
    samples, frames = qwen_batch(policy, 8, size, temperature)
    before = {name: weight.detach().clone() for name, weight in policy.trainable()}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    optimizer = adapter_optimizer(policy.trainable(), spec.training.learning_rate, 0.0)
    found = update(policy, optimizer, samples, frames, spec, torch.Generator().manual_seed(0))
    assert found.updates == 1
    assert found.mismatch_kl is not None
    assert found.mismatch_kl <= 0.001
    assert any(not torch.equal(before[name], weight) for name, weight in policy.trainable())
    if torch.cuda.is_available():
        assert torch.cuda.max_memory_allocated() - weights <= 24 * GIB
