"""One iteration's policy updates: measure the mismatch, then take optimizer steps in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionrl.job import JobSpec
from visionrl_trainer.algo.early_stopping import TrainingDiverged
from visionrl_trainer.algo.losses import LossBatch, policy_loss
from visionrl_trainer.model.policy import ImageFeatures, Policy
from visionrl_trainer.rollout.batch import Frame, Sample, sequences

FRAMES_AT_ONCE = 64


@dataclass(frozen=True)
class Mismatch:
    """How far the server's logprobs are from the trainer's for one policy version, over sampled tokens (nats)."""

    max_abs: float
    mean_abs: float
    kl: float
    """k3 estimate of KL(serving‖training) per token."""
    tokens: int


@dataclass(frozen=True)
class UpdateStats:
    """Diagnostics of an iteration's updates; means over tokens (over rows for GSPO's ratio and clip)."""

    loss: float
    grad_norm: float
    """Largest over the iteration's updates, before clipping."""
    entropy: float
    clip_fraction: float
    ratio_mean: float
    ratio_max: float
    advantage_std: float
    tokens: int
    updates: int


def encode(policy: Policy, samples: Sequence[Sample], frames: Mapping[str, Frame]) -> dict[str, ImageFeatures]:
    """Features of every distinct frame of the samples; the frozen vision tower runs once per frame."""
    digests = list(dict.fromkeys(digest for sample in samples for digest in sample.images))
    features: dict[str, ImageFeatures] = {}
    with torch.no_grad():
        for start in range(0, len(digests), FRAMES_AT_ONCE):
            chunk = digests[start : start + FRAMES_AT_ONCE]
            features |= zip(chunk, policy.encode_images([frames[digest] for digest in chunk]), strict=True)
    return features


def trained_logprobs(
    policy: Policy,
    samples: Sequence[Sample],
    image_features: Mapping[str, ImageFeatures],
    temperature: float,
    micro_batch: int,
) -> list[Tensor]:
    """Logprobs of each sample's completion under the current policy, without gradient."""
    found: list[Tensor] = [torch.empty(0)] * len(samples)
    with torch.no_grad():
        for indices in micro_batches(sequences(samples), samples, micro_batch):
            rows = [samples[index] for index in indices]
            logprobs_T, _ = policy.logprobs(rows, image_features, temperature)
            for index, values in zip(indices, logprobs_T.split([len(row.completion_ids) for row in rows]), strict=True):
                found[index] = values
    return found


def mismatch(samples: Sequence[Sample], trained: Sequence[Tensor]) -> Mismatch:
    """Compare the server's logprobs with the trainer's; both under the version that sampled."""
    serving_T = torch.tensor([logprob for sample in samples for logprob in sample.logprobs])
    difference_T = torch.cat([values.cpu() for values in trained]) - serving_T
    return Mismatch(
        max_abs=difference_T.abs().max().item(),
        mean_abs=difference_T.abs().mean().item(),
        kl=(difference_T.double().exp() - 1 - difference_T.double()).mean().item(),
        tokens=len(difference_T),
    )


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    old: Sequence[Tensor],
    image_features: Mapping[str, ImageFeatures],
    spec: JobSpec,
    shuffle: torch.Generator,
) -> UpdateStats:
    """``training.updatesPerIteration`` optimizer steps over the samples, each used once.

    ``old`` are the samples' logprobs before the first step. Raises :class:`TrainingDiverged` on a gradient that is
    not finite; the weights are then still those of the last step.
    """
    training, temperature = spec.training, spec.rollout.policy_config.temperature
    runs = sequences(samples)
    order = torch.randperm(len(runs), generator=shuffle)
    parameters = [parameter for _, parameter in policy.trainable()]
    totals = _Totals()
    for step in order.tensor_split(min(training.updates_per_iteration, len(runs))):
        chosen = [runs[index] for index in step.tolist()]
        tokens = sum(len(samples[index].completion_ids) for run in chosen for index in run)
        optimizer.zero_grad(set_to_none=True)
        for indices in micro_batches(chosen, samples, training.micro_batch_size):
            rows = [samples[index] for index in indices]
            logprobs_T, entropy_T = policy.logprobs(rows, image_features, temperature)
            lengths_N = torch.tensor([len(row.completion_ids) for row in rows], device=policy.device)
            batch = LossBatch(
                logprobs_T=logprobs_T,
                old_logprobs_T=torch.cat([old[index] for index in indices]),
                inference_logprobs_T=torch.tensor([v for row in rows for v in row.logprobs], device=policy.device),
                advantages_N=torch.tensor([row.advantage for row in rows], device=policy.device),
                row_T=torch.arange(len(rows), device=policy.device).repeat_interleave(lengths_N),
                rows=sum(len(run) for run in chosen),
                tokens=tokens,
                longest=spec.rollout.policy_config.max_tokens,
                base_logprobs_T=_base_logprobs(policy, rows, image_features, spec),
            )
            terms = policy_loss(spec.algorithm, batch)
            terms.loss.backward()
            totals.add(terms.loss.item(), entropy_T.detach(), terms.clipped, terms.ratio)
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        if not torch.isfinite(norm):
            raise TrainingDiverged(f"gradient norm is {norm.item()}: lower training.learningRate")
        optimizer.step()
        totals.grad_norm = max(totals.grad_norm, norm.item())
        totals.updates += 1
    advantages_N = torch.tensor([sample.advantage for sample in samples])
    return totals.stats(float(advantages_N.std(unbiased=False)))


def micro_batches(runs: Sequence[range], samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Indices of whole sequences in groups of at most ``size`` samples; a longer sequence is a group of its own.
    Sequences of similar length are grouped, so that little is padded."""
    group: list[int] = []
    for run in sorted(runs, key=lambda run: len(samples[run[-1]].prompt_ids) + len(samples[run[-1]].completion_ids)):
        if group and len(group) + len(run) > size:
            yield group
            group = []
        group += run
    if group:
        yield group


def _base_logprobs(
    policy: Policy, rows: Sequence[Sample], image_features: Mapping[str, ImageFeatures], spec: JobSpec
) -> Tensor | None:
    if not spec.algorithm.kl_coefficient:
        return None
    with torch.no_grad(), policy.without_adapter():
        return policy.logprobs(rows, image_features, spec.rollout.policy_config.temperature)[0]


class _Totals:
    """Sums over the micro-batches of an iteration."""

    def __init__(self) -> None:
        self.loss = self.entropy = self.clipped = self.ratio = self.grad_norm = self.ratio_max = 0.0
        self.tokens = self.ratios = self.updates = 0

    def add(self, loss: float, entropy_T: Tensor, clipped: Tensor, ratio: Tensor) -> None:
        self.loss += loss
        self.entropy += entropy_T.sum().item()
        self.clipped += clipped.sum().item()
        self.ratio += ratio.sum().item()
        self.ratio_max = max(self.ratio_max, ratio.max().item())
        self.tokens += len(entropy_T)
        self.ratios += len(ratio)

    def stats(self, advantage_std: float) -> UpdateStats:
        return UpdateStats(
            loss=self.loss / self.updates,
            grad_norm=self.grad_norm,
            entropy=self.entropy / self.tokens,
            clip_fraction=self.clipped / self.ratios,
            ratio_mean=self.ratio / self.ratios,
            ratio_max=self.ratio_max,
            advantage_std=advantage_std,
            tokens=self.tokens,
            updates=self.updates,
        )
