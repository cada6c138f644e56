"""Updates: what they measure, what they refuse, and that a rewarded answer becomes more likely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visionrl.frames import frame_hash
from visionrl.job import Algorithm, JobSpec, PolicyModel, Training
from visionrl_trainer.algo.early_stopping import TrainingDiverged
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.update import encode, micro_batches, mismatch, trained_logprobs, update
from visionrl_trainer.model.policy import ImageFeatures, Policy
from visionrl_trainer.rollout.batch import Sample

pytestmark = pytest.mark.vision

Prepared = tuple[list[Sample], list[torch.Tensor], dict[str, ImageFeatures]]
"""Samples, the trainer's logprobs of each, and their frames as the model sees them."""


def spec(loss: str, **training: object) -> JobSpec:
    return JobSpec(
        algorithm=Algorithm(loss=loss, clip_low=0.5, clip_high=0.5),  # type: ignore[arg-type]
        model=PolicyModel(base="tiny"),
        training=Training(iterations=1, **training),  # type: ignore[arg-type]
    )


@pytest.fixture
def prepared(policy: Policy, samples: list[Sample], frames: list[np.ndarray]) -> Prepared:
    """Samples as if a server had reported the trainer's own logprobs, the first rewarded, the last punished."""
    pictures = {frame_hash(frame): frame for frame in frames}
    image_features = encode(policy, samples, pictures)
    old = trained_logprobs(policy, samples, image_features, 1.0, micro_batch=3)
    advantages = [1.0, 0.0, 0.0, -1.0]
    served = [
        replace(sample, logprobs=tuple(values.tolist()), advantage=advantage)
        for sample, values, advantage in zip(samples, old, advantages, strict=True)
    ]
    return served, old, image_features


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_a_rewarded_answer_becomes_more_likely_and_a_punished_one_less(
    policy: Policy, prepared: Prepared, loss: str
) -> None:
    samples, old, image_features = prepared
    job = spec(loss)
    optimizer = adapter_optimizer(policy.trainable(), 5e-3, 0.0)
    before = [values.sum().item() for values in old]
    for _ in range(3):
        current = trained_logprobs(policy, samples, image_features, 1.0, 4)
        update(policy, optimizer, samples, current, image_features, job, torch.Generator().manual_seed(0))
    after = [values.sum().item() for values in trained_logprobs(policy, samples, image_features, 1.0, 4)]
    assert after[0] > before[0]
    assert after[3] < before[3]


def test_the_micro_batch_size_leaves_the_update_as_it_is(policy: Policy, prepared: Prepared, tmp_path: Path) -> None:
    samples, old, image_features = prepared
    policy.save_adapter(tmp_path)
    results = []
    for size in (1, 3, 64):
        policy.load_adapter(tmp_path)
        optimizer = torch.optim.SGD([parameter for _, parameter in policy.trainable()], lr=1.0)
        job = spec("grpo", micro_batch_size=size)
        update(policy, optimizer, samples, old, image_features, job, torch.Generator().manual_seed(0))
        results.append(torch.cat([parameter.detach().flatten().clone() for _, parameter in policy.trainable()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-6)


def test_the_mismatch_is_the_difference_in_nats(prepared: Prepared) -> None:
    samples, old, _ = prepared
    assert mismatch(samples, old).max_abs < 1e-6
    off = [replace(sample, logprobs=tuple(value - 0.5 for value in sample.logprobs)) for sample in samples]
    found = mismatch(off, old)
    assert found.mean_abs == pytest.approx(0.5, abs=1e-5)
    assert found.kl == pytest.approx(0.1487, abs=1e-3)  # e^½ − 1 − ½


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(policy: Policy, prepared: Prepared) -> None:
    samples, old, image_features = prepared
    poisoned = [replace(samples[0], advantage=float("inf")), *samples[1:]]
    before = [parameter.detach().clone() for _, parameter in policy.trainable()]
    optimizer = adapter_optimizer(policy.trainable(), 1e-3, 0.0)
    with pytest.raises(TrainingDiverged, match="gradient norm"):
        update(policy, optimizer, poisoned, old, image_features, spec("grpo"), torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, policy.trainable(), strict=True))


def test_micro_batches_cover_every_sample_once_and_keep_chains_together(samples: list[Sample]) -> None:
    groups = list(micro_batches([range(0, 1), range(1, 4)], samples, 2))
    assert sorted(map(sorted, groups)) == [[0], [1, 2, 3]]
    assert list(micro_batches([range(0, 1), range(1, 2)], samples, 2)) == [[0, 1]]
