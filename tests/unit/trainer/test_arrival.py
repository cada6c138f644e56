"""What is computed when a group arrives is what the update would have computed, and the update computes it no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from tests.support.jobs import job as make_job
from tests.unit.trainer.test_update import disturb, spec
from visionrl.frames import frame_hash
from visionrl_trainer import train
from visionrl_trainer.algo.advantages import with_advantages
from visionrl_trainer.algo.arrival import prepare
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.stats import UpdateStats
from visionrl_trainer.algo.update import completion_logprobs, encode, update
from visionrl_trainer.model.policy import ImageFeatures, Policy
from visionrl_trainer.rollout.batch import EpisodeSamples, Frame, Group, Sample
from visionrl_trainer.rollout.sampler import Batch
from visionrl_trainer.state.run import RunState

pytestmark = pytest.mark.vision


@dataclass
class Scene:
    """A policy, and two episodes of two decisions that its version in ``played_by`` played."""

    policy: Policy
    frames: dict[str, Frame]
    samples: list[Sample]
    played_by: Path

    def group(self, *rewards: float) -> Group:
        pairs = [tuple(self.samples[:2]), tuple(self.samples[2:])]
        return Group(
            0,
            tuple(
                EpisodeSamples(0, pair, (reward, 0.0), ("a", "b"), reward, 0)
                for pair, reward in zip(pairs, rewards, strict=True)
            ),
        )

    def learn(
        self, group: Group, played_by: Path | None, updates: int, features: dict[str, ImageFeatures] | None = None
    ) -> tuple[UpdateStats, torch.Tensor]:
        """The statistics and the weights after an update from the weights as they are, which are restored."""
        before = self.policy.adapter_weights()
        job = spec("grpo", updates_per_iteration=updates)
        optimizer = adapter_optimizer(self.policy.trainable(), 1e-3, 0.0)
        samples, shuffle = with_advantages([group], job.algorithm), torch.Generator().manual_seed(0)
        stats = update(self.policy, optimizer, samples, self.frames, job, shuffle, played_by, features)
        after = torch.cat([parameter.detach().flatten().clone() for _, parameter in self.policy.trainable()])
        self.policy.set_adapter_weights(before)
        return stats, after


@pytest.fixture
def scene(policy: Policy, samples: list[Sample], frames: list[np.ndarray], tmp_path: Path) -> Scene:
    by_hash = {frame_hash(frame): frame for frame in frames}
    disturb(policy)
    policy.save_adapter(tmp_path)
    policy.load_adapter(tmp_path)
    found = completion_logprobs(
        policy, samples, [range(n, n + 1) for n in range(4)], encode(policy, samples, by_hash), spec("grpo")
    )
    served = [
        Sample(s.prompt_ids, s.completion_ids, tuple(found[n].tolist()), s.images, "v") for n, s in enumerate(samples)
    ]
    return Scene(policy, by_hash, served, tmp_path)


@pytest.fixture
def passes(policy: Policy) -> Iterator[list[str]]:
    """Of the vision tower, and of the model without a gradient."""
    seen: list[str] = []
    encode_images, logprobs = policy.encode_images, policy.logprobs

    def counted_images(*arguments: object) -> object:
        seen.append("frames")
        return encode_images(*arguments)  # type: ignore[arg-type]

    def counted_logprobs(*arguments: object) -> object:
        if not torch.is_grad_enabled():
            seen.append("logprobs")
        return logprobs(*arguments)  # type: ignore[arg-type]

    with mock.patch.multiple(policy, encode_images=counted_images, logprobs=counted_logprobs):
        yield seen


@pytest.mark.parametrize(("ahead", "updates"), [(False, 1), (False, 2), (True, 1)])
def test_the_update_is_the_same_and_computes_nothing_twice(
    scene: Scene, passes: list[str], ahead: bool, updates: int
) -> None:
    played_by = scene.played_by if ahead else None
    if ahead:
        disturb(scene.policy, seed=5)  # the policy has learned since
    expected, weights = scene.learn(scene.group(1.0, 0.0), played_by, updates)
    group, features = prepare(
        scene.policy, scene.group(1.0, 0.0), scene.frames, spec("grpo"), ahead or updates > 1, played_by
    )
    passes.clear()
    found, same = scene.learn(group, played_by, updates, features)
    assert passes == []
    assert expected.mismatch_max is not None
    assert expected.mismatch_max < 1e-5
    assert found.updates == expected.updates == updates
    assert (found.mismatch_max, found.mismatch_kl) == pytest.approx(
        (expected.mismatch_max, expected.mismatch_kl), abs=1e-6
    )
    torch.testing.assert_close(same, weights, rtol=0, atol=1e-6)


def test_several_steps_ahead_measure_their_own_first_logprobs_alone(scene: Scene, passes: list[str]) -> None:
    disturb(scene.policy, seed=5)
    expected, weights = scene.learn(scene.group(1.0, 0.0), scene.played_by, 2)
    group, features = prepare(scene.policy, scene.group(1.0, 0.0), scene.frames, spec("grpo"), True, scene.played_by)
    passes.clear()
    found, same = scene.learn(group, scene.played_by, 2, features)
    assert passes == ["logprobs"]
    assert found.mismatch_max == pytest.approx(expected.mismatch_max, abs=1e-6)
    torch.testing.assert_close(same, weights, rtol=0, atol=1e-6)


def test_an_answer_of_other_weights_is_found_when_it_arrives(scene: Scene) -> None:
    """The logprobs are of the version that sampled, not of the policy."""
    disturb(scene.policy, seed=5)
    now = scene.policy.adapter_weights()
    group, _ = prepare(scene.policy, scene.group(1.0, 0.0), scene.frames, spec("grpo"), True, scene.played_by)
    for episode in group.episodes:
        for sample in episode.samples:
            assert sample.trained == pytest.approx(sample.logprobs, abs=1e-5)
    for name, weight in scene.policy.adapter_weights().items():
        assert torch.equal(weight, now[name])


def test_a_group_without_a_signal_costs_nothing(scene: Scene, passes: list[str]) -> None:
    group, features = prepare(scene.policy, scene.group(1.0, 1.0), scene.frames, spec("grpo"), True, None)
    assert (passes, features) == ([], {})
    assert group == scene.group(1.0, 1.0)


def test_the_features_of_two_batches_at_most_are_kept(scene: Scene) -> None:
    """Of the 4B's frames, 64 episodes of 50 turns have 5 GB, and up to eight batches wait. Their logprobs are kept."""
    learning = train._Run.__new__(train._Run)  # the seventh iteration, in a run with three batches ahead
    learning.policy, learning.weights = scene.policy, "v"
    learning.job = make_job({"training.maxStaleness": 3})
    learning.state = RunState(version="v", iteration=7)
    for iteration in range(7, 11):
        batch = Batch("v", frames=scene.frames)
        group = learning._prepare(iteration, batch, scene.group(1.0, 0.0))
        assert bool(batch.features) is (iteration <= 8)
        assert all(sample.trained for e in group.episodes for sample in e.samples) is (iteration > 7)


def test_one_step_in_step_needs_the_frames_alone(scene: Scene, passes: list[str]) -> None:
    group, features = prepare(scene.policy, scene.group(1.0, 0.0), scene.frames, spec("grpo"), False, None)
    assert (passes, features.keys()) == (["frames"], {image for sample in scene.samples for image in sample.images})
    assert group == scene.group(1.0, 0.0)
