"""One iteration's policy updates: measure the mismatch, then take optimizer steps in micro-batches."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from visionrl.job import JobSpec
from visionrl_trainer.algo.early_stopping import check_mismatch
from visionrl_trainer.algo.losses import LossBatch, policy_loss
from visionrl_trainer.algo.mismatch import TOKEN_LIMIT, MismatchMeter
from visionrl_trainer.algo.stats import Totals, UpdateStats
from visionrl_trainer.model.memory import MicroBatchSize
from visionrl_trainer.model.micro_batches import micro_batches
from visionrl_trainer.model.policy import ImageFeatures, Policy
from visionrl_trainer.rollout.batch import Frame, Sample, sequences

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 64


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    frames: Mapping[str, Frame],
    spec: JobSpec,
    shuffle: torch.Generator,
    played_by: Path | None = None,
    features: Mapping[str, ImageFeatures] | None = None,
) -> UpdateStats:
    """``training.updatesPerIteration`` optimizer steps over the samples, each used once.

    ``played_by`` is the adapter that sampled, if it is not the current policy; ``features`` those of frames that are
    encoded already. A sequence without a signal (advantages of zero, no KL term) is not computed, but counts in the
    means of the loss. Decisions about which serving and training disagree are masked. A step without any signal is not
    taken: momentum and weight decay would move the weights. A step with a gradient that is not finite is skipped and
    counted.

    Raises :class:`visionrl_trainer.algo.early_stopping.TrainingDiverged`, before the first step, if serving and
    training disagree beyond the guards.
    """
    runs = sequences(samples)
    order = torch.randperm(len(runs), generator=shuffle)
    steps = order.tensor_split(min(spec.training.updates_per_iteration, len(runs)))
    learnable = frozenset(run for run in runs if has_signal(run, samples, spec))
    seen = [samples[index] for run in runs if run in learnable for index in run]
    meter = MismatchMeter(TOKEN_LIMIT[spec.model.dtype])
    with torch.no_grad():
        image_features = encode(policy, seen, frames, features or {})
    batch = _Batch(policy, samples, image_features, spec, learnable, meter)
    batch.measure(played_by, one_step=len(steps) == 1)
    totals = Totals(policy.device)
    parameters = [parameter for _, parameter in policy.trainable()]
    for step in steps:
        optimizer.zero_grad(set_to_none=True)
        totals.add(_backward(batch, [runs[index] for index in step.tolist()], optimizer))
        batch.check_mismatch()
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec.training.max_grad_norm).item()
        if 0 < norm < torch.inf:
            optimizer.step()
            totals.updates += 1
            totals.grad_norm = max(totals.grad_norm, norm)
        elif norm != 0:
            logger.warning("an update is skipped: the norm of its gradient is %s", norm)
            totals.skipped += 1
    advantages_N = torch.tensor([sample.advantage for sample in samples])
    return totals.stats(float(advantages_N.std(unbiased=False)), batch.meter.result())


def _backward(batch: _Batch, runs: Sequence[range], optimizer: torch.optim.Optimizer) -> Totals:
    """The step's gradient; once in a training with smaller micro-batches, if memory runs out."""
    try:
        return batch.backward(runs)
    except torch.OutOfMemoryError as error:
        if not batch.policy.halve_micro_batches():
            raise
        logger.warning(str(error))  # a log record that kept the error would keep its frames, and their tensors
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return batch.backward(runs)


def has_signal(run: range, samples: Sequence[Sample], spec: JobSpec) -> bool:
    """Whether a sequence can have a gradient."""
    return spec.algorithm.kl_coefficient > 0 or any(samples[index].advantage != 0 for index in run)


def encode(
    policy: Policy,
    samples: Sequence[Sample],
    frames: Mapping[str, Frame],
    known: Mapping[str, ImageFeatures] = MappingProxyType({}),
) -> dict[str, ImageFeatures]:
    """Features of every distinct frame of the samples, and the ``known`` ones; the vision tower runs once per frame."""
    digests = [
        digest for digest in dict.fromkeys(d for sample in samples for d in sample.images) if digest not in known
    ]
    features = dict(known)
    for start in range(0, len(digests), FRAMES_AT_ONCE):
        chunk = digests[start : start + FRAMES_AT_ONCE]
        features |= zip(chunk, policy.encode_images([frames[digest] for digest in chunk]), strict=True)
    return features


def completion_logprobs(
    policy: Policy,
    samples: Sequence[Sample],
    runs: Iterable[range],
    features: Mapping[str, ImageFeatures],
    spec: JobSpec,
) -> dict[int, Tensor]:
    """Of the completions in these runs of samples under the policy's weights, without gradient; by sample."""
    found: dict[int, Tensor] = {}
    size = MicroBatchSize.without_gradient(spec.training, policy.device)
    with torch.no_grad():
        for indices in micro_batches(runs, samples, size, policy.image_token):
            chosen = [samples[index] for index in indices]
            logprobs_T, _ = policy.logprobs(chosen, features, spec.rollout.policy_config.temperature)
            found |= zip(indices, logprobs_T.split([len(sample.completion_ids) for sample in chosen]), strict=True)
    return found


@dataclass
class _DecisionTensors:
    """A micro-batch's N decisions and T completion tokens as tensors."""

    serving_T: Tensor
    advantages_N: Tensor
    decision_T: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], device: torch.device) -> _DecisionTensors:
        lengths_N = torch.tensor([len(sample.completion_ids) for sample in samples])
        return cls(
            serving_T=torch.tensor([logprob for sample in samples for logprob in sample.logprobs], device=device),
            advantages_N=torch.tensor([sample.advantage for sample in samples], device=device),
            decision_T=torch.arange(len(samples)).repeat_interleave(lengths_N).to(device),
        )


@dataclass
class _Batch:
    """An iteration's samples, and what is known of them before the first step.

    With one step an iteration, the logprobs before it are those that the step computes anyway: the mismatch is measured
    and checked between its backward pass and the optimizer's step, and the ratio is exactly 1.
    """

    policy: Policy
    samples: Sequence[Sample]
    image_features: Mapping[str, ImageFeatures]
    spec: JobSpec
    learnable: frozenset[range]
    meter: MismatchMeter
    agrees: dict[int, bool] = field(default_factory=dict)
    """By sample; empty where the step measures it."""
    old: dict[int, Tensor] = field(default_factory=dict)
    """Logprobs by sample, under the policy before the first step; empty where they are the step's own."""
    reference: dict[int, Tensor] = field(default_factory=dict)
    """Logprobs by sample, for the KL term."""

    def measure(self, played_by: Path | None, one_step: bool) -> None:
        """Compute what has to be known before the first step."""
        if self.spec.algorithm.kl_coefficient:
            with self.policy.as_reference():
                self.reference = self._logprobs(self.learnable)
        if played_by is not None:
            self._compare(self._as_sampled(self.policy.as_version(played_by)))
            if not one_step:
                self.old = self._logprobs(self.learnable)
        elif not one_step:
            self.old = self._as_sampled(contextlib.nullcontext())
            self._compare(self.old)

    def _as_sampled(self, weights: AbstractContextManager[None]) -> dict[int, Tensor]:
        """Of the learnable samples under the weights that sampled; what was computed when they arrived is taken."""
        found = {
            index: torch.tensor(trained, device=self.policy.device)
            for run in self.learnable
            for index in run
            if (trained := self.samples[index].trained) is not None
        }
        if missing := frozenset(run for run in self.learnable if not found.keys() >= set(run)):
            with weights:
                found |= self._logprobs(missing)
        return found

    def _logprobs(self, runs: Iterable[range]) -> dict[int, Tensor]:
        return completion_logprobs(self.policy, self.samples, runs, self.image_features, self.spec)

    def backward(self, runs: Sequence[range]) -> Totals:
        """Add the gradient of the step's loss to the parameters' gradients."""
        totals = Totals(self.policy.device)
        if not self.agrees:
            self.meter = MismatchMeter(self.meter.limit)
        indices_of_step = [index for run in runs for index in run]
        tokens = sum(len(self.samples[index].completion_ids) for index in indices_of_step)
        learnable = [run for run in runs if run in self.learnable]
        plan = self.policy.plan_memory(self.spec.training, self._features_to_come())
        for indices in micro_batches(learnable, self.samples, plan, self.policy.image_token):
            self._add_gradient(indices, len(indices_of_step), tokens, totals)
        return totals

    def _features_to_come(self) -> int:
        """Bytes that frames' features need in later iterations, beyond those of this one: all its frames may have a
        signal then, and with batches that wait, those of the next are there as well."""
        frames = {digest for sample in self.samples for digest in sample.images}
        batches = 2 if self.spec.training.max_staleness > 1 else 1
        largest = max((features.nbytes for features in self.image_features.values()), default=0)
        return largest * max(0, batches * len(frames) - len(self.image_features))

    def _add_gradient(self, indices: Sequence[int], decisions: int, tokens: int, totals: Totals) -> None:
        """Of one micro-batch, in a step of so many decisions and tokens. Nothing that it computed outlives it, or two
        micro-batches would be in memory at once."""
        samples = [self.samples[index] for index in indices]
        tensors = _DecisionTensors.of(samples, self.policy.device)
        logprobs_T, entropy_T = self.policy.logprobs(samples, self.image_features, self._temperature)
        agrees_N = self._agrees(indices, logprobs_T, tensors)
        if not agrees_N.any():
            return
        agrees_T = agrees_N[tensors.decision_T]
        terms = policy_loss(
            self.spec.algorithm,
            LossBatch(
                logprobs_T=logprobs_T[agrees_T],
                old_logprobs_T=_concatenated(self.old, indices, logprobs_T.detach())[agrees_T],
                inference_logprobs_T=tensors.serving_T[agrees_T],
                advantages_N=tensors.advantages_N[agrees_N],
                decision_T=(agrees_N.cumsum(0) - 1)[tensors.decision_T[agrees_T]],
                decisions=decisions,
                tokens=tokens,
                longest=self.spec.rollout.policy_config.max_tokens,
                reference_logprobs_T=_concatenated(self.reference, indices, logprobs_T.detach())[agrees_T],
            ),
        )
        terms.loss.backward()
        totals.count(terms, entropy_T.detach()[agrees_T])

    def check_mismatch(self) -> None:
        """Raises :class:`visionrl_trainer.algo.early_stopping.TrainingDiverged`."""
        check_mismatch(self.meter.result(), self.spec.model.dtype, self.spec.training.guards)

    def _agrees(self, indices: Sequence[int], logprobs_T: Tensor, tensors: _DecisionTensors) -> Tensor:
        """Which of the decisions are not masked, bool [N]."""
        if self.agrees:
            return torch.tensor([self.agrees[index] for index in indices], device=self.policy.device)
        return self.meter.add(logprobs_T, tensors.serving_T, tensors.decision_T, len(indices))

    def _compare(self, trained: Mapping[int, Tensor]) -> None:
        """Measure and check the mismatch of all learnable samples."""
        if not trained:
            return
        indices = list(trained)
        tensors = _DecisionTensors.of([self.samples[index] for index in indices], self.policy.device)
        agrees_N = self.meter.add(
            torch.cat(list(trained.values())), tensors.serving_T, tensors.decision_T, len(indices)
        )
        self.agrees = dict(zip(indices, agrees_N.tolist(), strict=True))
        self.check_mismatch()

    @property
    def _temperature(self) -> float:
        return self.spec.rollout.policy_config.temperature


def _concatenated(known: Mapping[int, Tensor], indices: Sequence[int], default_T: Tensor) -> Tensor:
    return torch.cat([known[index] for index in indices]) if known else default_T
