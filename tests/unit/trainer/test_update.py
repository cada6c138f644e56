"""Updates: what they measure, what they mask and skip, and that a rewarded answer becomes more likely."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from visionrl.frames import frame_hash
from visionrl.job import Algorithm, Guards, JobSpec, PolicyModel, Training
from visionrl_trainer.algo.early_stopping import TrainingDiverged
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.stats import UpdateStats
from visionrl_trainer.algo.update import encode, update
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample

pytestmark = pytest.mark.vision


def spec(loss: str, dtype: str = "float32", kl: float = 0.0, **training: Any) -> JobSpec:
    return JobSpec(
        algorithm=Algorithm(loss=loss, clip_low=0.5, clip_high=0.5, kl_coefficient=kl),  # type: ignore[arg-type]
        model=PolicyModel(base="tiny", dtype=dtype),  # type: ignore[arg-type]
        training=Training(iterations=1, **training),
    )


@dataclass
class Trial:
    """A policy and a batch, as if a server had reported the trainer's own logprobs: the first decision rewarded, the
    last punished."""

    policy: Policy
    samples: list[Sample]
    frames: dict[str, Frame]

    def logprobs(self) -> list[torch.Tensor]:
        with torch.no_grad():
            features = encode(self.policy, self.samples, self.frames)
            return [self.policy.logprobs([sample], features, 1.0)[0] for sample in self.samples]

    def served(self) -> None:
        """The policy as it is becomes the one that sampled."""
        self.samples = [
            replace(sample, logprobs=tuple(values.tolist()))
            for sample, values in zip(self.samples, self.logprobs(), strict=True)
        ]

    def advantages(self, *values: float) -> None:
        self.samples = [replace(s, advantage=value) for s, value in zip(self.samples, values, strict=True)]

    def update(
        self, job: JobSpec, optimizer: torch.optim.Optimizer | None = None, played_by: Path | None = None
    ) -> UpdateStats:
        optimizer = optimizer or adapter_optimizer(self.policy.trainable(), 1e-3, 0.0)
        shuffle = torch.Generator().manual_seed(0)
        return update(self.policy, optimizer, self.samples, self.frames, job, shuffle, played_by)

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten().clone() for _, parameter in self.policy.trainable()])

    def gradient(self, job: JobSpec, start: Path) -> torch.Tensor:
        """Of one step from the weights in ``start``, which are restored."""
        self.policy.load_adapter(start)
        before = self.weights()
        sgd = torch.optim.SGD([parameter for _, parameter in self.policy.trainable()], lr=1.0)
        self.update(job, sgd)
        found = before - self.weights()
        self.policy.load_adapter(start)
        return found


def disturb(policy: Policy, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def trial(policy: Policy, samples: list[Sample], frames: list[np.ndarray]) -> Trial:
    found = Trial(policy, samples, {frame_hash(frame): frame for frame in frames})
    found.advantages(1.0, 0.0, 0.0, -1.0)
    found.served()
    return found


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_a_rewarded_answer_becomes_more_likely_and_a_punished_one_less(trial: Trial, loss: str) -> None:
    optimizer = adapter_optimizer(trial.policy.trainable(), 5e-3, 0.0)
    before = [values.sum().item() for values in trial.logprobs()]
    for _ in range(3):
        trial.update(spec(loss), optimizer)
        trial.served()
    after = [values.sum().item() for values in trial.logprobs()]
    assert after[0] > before[0]
    assert after[3] < before[3]


def test_the_micro_batch_size_leaves_the_update_as_it_is(trial: Trial, tmp_path: Path) -> None:
    trial.policy.save_adapter(tmp_path)
    whole = trial.gradient(spec("grpo", micro_batch_size=64), tmp_path)
    for size in (1, 3):
        found = trial.gradient(spec("grpo", micro_batch_size=size), tmp_path)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


# --- the mismatch


@pytest.mark.parametrize("updates", [1, 2])
def test_the_mismatch_is_the_difference_in_nats(trial: Trial, updates: int) -> None:
    trial.advantages(1.0, 0.5, -0.5, -1.0)
    found = trial.update(spec("grpo", updates_per_iteration=updates))
    assert found.mismatch_max is not None
    assert found.mismatch_max < 1e-5
    trial.served()
    trial.samples = [replace(s, logprobs=tuple(value - 0.1 for value in s.logprobs)) for s in trial.samples]
    guards = Guards(maxMismatchKL=1.0)
    found = trial.update(spec("grpo", updates_per_iteration=updates, guards=guards))
    assert found.mismatch_mean == pytest.approx(0.1, abs=1e-5)
    assert found.mismatch_kl == pytest.approx(0.00517, abs=1e-4)  # e^⅒ − 1 − ⅒


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("lie", [-45.0, -1.7e308, float("nan"), float("-inf")])
def test_one_lie_masks_its_decision_and_nothing_else(trial: Trial, tmp_path: Path, updates: int, lie: float) -> None:
    trial.policy.save_adapter(tmp_path)
    trial.advantages(1.0, 0.5, 0.0, -1.0)
    job = spec("grpo", updates_per_iteration=updates)
    honest = replace(trial.samples[1], advantage=0.0)
    liar = replace(trial.samples[1], logprobs=(lie, *trial.samples[1].logprobs[1:]))
    trial.samples[1] = honest
    expected = trial.gradient(job, tmp_path)
    trial.samples[1] = liar
    torch.testing.assert_close(trial.gradient(job, tmp_path), expected, rtol=0, atol=1e-6)
    found = trial.update(job)
    assert found.masked_rate == pytest.approx(1 / 3)
    assert found.mismatch_max is not None
    assert found.mismatch_max < 1e-5
    assert found.updates == updates


@pytest.mark.parametrize("updates", [1, 2])
def test_a_server_of_other_weights_stops_the_run_before_the_weights_change(trial: Trial, updates: int) -> None:
    disturb(trial.policy)
    before = trial.weights()
    with pytest.raises(TrainingDiverged, match="serving and training disagree"):
        trial.update(spec("grpo", updates_per_iteration=updates))
    assert torch.equal(trial.weights(), before)


def test_a_batch_of_an_older_version_is_measured_against_that_version(trial: Trial, tmp_path: Path) -> None:
    """On all decisions, whatever the micro-batch."""
    trial.policy.save_adapter(tmp_path)
    disturb(trial.policy)
    job = spec("grpo", micro_batch_size=1)
    liar = trial.samples[3]
    trial.samples[3] = replace(liar, logprobs=(-45.0, *liar.logprobs[1:]))
    found = trial.update(job, played_by=tmp_path)
    assert found.mismatch_max is not None
    assert found.mismatch_max < 1e-5
    assert found.masked_rate == 0.5


# --- steps


def test_on_policy_every_ratio_is_one_in_bfloat16_too(trial: Trial, tiny_directory: Path) -> None:
    """With one update, old and new logprobs are the same computation: GSPO's clip of 3e-4 is far below its noise."""
    from visionrl.job import Lora

    policy = Policy.load(tiny_directory, "bfloat16", torch.device("cpu"))
    policy.add_adapter(Lora(r=4, alpha=8), seed=0)
    disturb(policy)
    trial.policy = policy
    trial.served()
    trial.advantages(1.0, 0.5, -0.5, -1.0)
    job = spec("gspo", "bfloat16", micro_batch_size=2)
    job = job.model_copy(update={"algorithm": Algorithm(loss="gspo")})
    found = trial.update(job)
    assert (found.ratio_mean, found.ratio_max, found.clip_fraction) == (1.0, 1.0, 0.0)


def test_a_batch_without_a_signal_does_not_move_the_weights(trial: Trial) -> None:
    """Neither by momentum nor by weight decay."""
    optimizer = adapter_optimizer(trial.policy.trainable(), 1e-3, 0.1)
    trial.update(spec("grpo"), optimizer)
    before = trial.weights()
    trial.advantages(0.0, 0.0, 0.0, 0.0)
    found = trial.update(spec("grpo"), optimizer)
    assert torch.equal(trial.weights(), before)
    assert (found.updates, found.skipped_updates, found.tokens, found.entropy) == (0, 0, 0, None)


def test_decisions_without_a_signal_are_not_computed_but_count_in_the_mean(trial: Trial, tmp_path: Path) -> None:
    trial.policy.save_adapter(tmp_path)
    computed: list[int] = []
    whole = trial.policy.logprobs

    def counted(samples: list[Sample], *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        computed.append(len(samples))
        return whole(samples, *arguments)

    trial.policy.logprobs = counted  # type: ignore[method-assign, assignment]
    four = trial.gradient(spec("grpo"), tmp_path)
    assert sum(computed) == 2
    trial.samples = [trial.samples[0], trial.samples[3]]
    torch.testing.assert_close(trial.gradient(spec("grpo"), tmp_path), 2 * four, rtol=0, atol=1e-7)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(trial: Trial) -> None:
    trial.samples[0] = replace(trial.samples[0], advantage=float("inf"))
    before = trial.weights()
    found = trial.update(spec("grpo"))
    assert torch.equal(trial.weights(), before)
    assert (found.updates, found.skipped_updates, found.loss) == (0, 1, None)


# --- the KL term


def test_the_kl_term_pulls_towards_the_base(trial: Trial) -> None:
    disturb(trial.policy)
    trial.served()
    trial.advantages(0.0, 0.0, 0.0, 0.0)
    with trial.policy.without_adapter():
        base = torch.cat(trial.logprobs())
    before = (torch.cat(trial.logprobs()) - base).abs().mean()
    optimizer = adapter_optimizer(trial.policy.trainable(), 5e-3, 0.0)
    for _ in range(3):
        trial.update(spec("grpo", kl=1.0), optimizer)
        trial.served()
    assert (torch.cat(trial.logprobs()) - base).abs().mean() < before


def test_after_a_warm_start_the_kl_term_has_no_gradient_at_its_adapter(trial: Trial, tmp_path: Path) -> None:
    disturb(trial.policy)
    trial.policy.save_adapter(tmp_path)
    trial.served()
    trial.advantages(0.0, 0.0, 0.0, 0.0)
    to_base = trial.gradient(spec("grpo", kl=1.0), tmp_path)
    trial.policy.set_reference(tmp_path)
    to_warm_start = trial.gradient(spec("grpo", kl=1.0), tmp_path)
    assert to_base.abs().max() > 1e-3
    assert to_warm_start.abs().max() < 1e-5


# --- memory


def test_when_memory_runs_out_micro_batches_are_halved_once(
    trial: Trial, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial.advantages(1.0, 0.5, -0.5, -1.0)
    trial.policy.save_adapter(tmp_path)
    expected = trial.gradient(spec("grpo"), tmp_path)
    whole = trial.policy.logprobs

    def small(samples: list[Sample], *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if len(samples) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(samples, *arguments)

    limit = 2
    trial.policy.logprobs = small  # type: ignore[method-assign, assignment]
    memory = trial.policy.plan_memory(spec("grpo").training)
    trial.policy.memory = replace(memory, samples=4)
    torch.testing.assert_close(trial.gradient(spec("grpo"), tmp_path), expected, rtol=0, atol=1e-6)
    assert caplog.text.count("out of memory: from now on") == 1
    limit = 1
    with pytest.raises(torch.OutOfMemoryError):
        trial.update(spec("grpo"))


@pytest.mark.parametrize(("staleness", "batches"), [(0, 1), (1, 1), (2, 2), (8, 2)])
def test_the_plan_leaves_room_for_the_features_that_later_iterations_have(
    trial: Trial, staleness: int, batches: int
) -> None:
    """Of all frames, though half of the first batch has no signal; of the next batch too, where batches wait."""
    trial.advantages(1.0, 0.0, 0.0, 0.0)
    each = encode(trial.policy, trial.samples[:1], trial.frames)[trial.samples[0].images[0]].nbytes
    frames = len({digest for sample in trial.samples for digest in sample.images})
    now = len(set(trial.samples[0].images))
    with mock.patch.object(trial.policy, "plan_memory", wraps=trial.policy.plan_memory) as plan:
        trial.update(spec("grpo", max_staleness=staleness))
    [call] = plan.call_args_list
    assert call.args[1] == (batches * frames - now) * each > 0


def test_a_masked_micro_batch_is_forgotten_before_the_next_is_computed(trial: Trial) -> None:
    trial.advantages(1.0, 1.0, -1.0, -1.0)
    trial.samples[:2] = [replace(s, logprobs=(-45.0,) * len(s.logprobs)) for s in trial.samples[:2]]
    computed: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    whole = trial.policy.logprobs

    def watched(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        gc.collect()
        alive.append(sum(found() is not None for found in computed))
        logprobs_T, entropy_T = whole(*arguments)
        computed.append(weakref.ref(logprobs_T))
        return logprobs_T, entropy_T

    trial.policy.logprobs = watched  # type: ignore[method-assign, assignment]
    guards = Guards(maxMismatchKL=None, max_rejected_rate=None)
    found = trial.update(spec("grpo", micro_batch_size=1, guards=guards))
    assert found.masked_rate == 0.5
    assert alive == [0, 0, 0, 0]
