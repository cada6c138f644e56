"""Supervised training: all weights or an adapter, on demonstrations. Losses are nats per decision.

The samples of a step are a function of seed and step, so an interrupted and resumed training ends with the same
weights, bit for bit, as an uninterrupted one.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from visionrl import folders
from visionrl.adapters import write_manifest
from visionrl.frames import decode_png, frame_hash
from visionrl.job import JobSpec, WarmStart
from visionrl_trainer.algo.early_stopping import TrainingDiverged
from visionrl_trainer.algo.optim import full_optimizers, schedule
from visionrl_trainer.algo.update import encode
from visionrl_trainer.model.memory import MemoryPlan
from visionrl_trainer.model.micro_batches import micro_batches
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample, sequences
from visionrl_trainer.sft.average import WeightAverage
from visionrl_trainer.sft.checkpoint import SftCheckpoints
from visionrl_trainer.sft.teacher import Demonstrations
from visionrl_trainer.sft.tokens import Tokens
from visionrl_trainer.state.runfolder import SftFolder

VALIDATION_DECISIONS = 384
VALIDATION_TIME = 0.1
"""Share of the time of steps that is spent on validation where it decides about the end."""
FORWARD_SHARE = 1 / 3
"""Share of a step's time that its forward pass takes."""
WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|gguf|h5)(\.index\.json)?$")
"""Names of files that hold a model's weights."""
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class SftReport:
    """Progress of supervised training: a line of its metrics."""

    step: int
    steps: int
    loss: float
    """Mean over the steps since the report before."""
    learning_rate: float
    grad_norm: float
    """Largest since the report before, before clipping."""
    decisions_per_second: float
    validation_loss: float | None = None

    def line(self) -> str:
        """For people."""
        validation = "" if self.validation_loss is None else f", validation {self.validation_loss:.3f}"
        return f"supervised step {self.step}/{self.steps}, loss {self.loss:.3f}{validation} nats per decision"


class Stopped(Exception):
    """The training was asked to stop; it resumes from its checkpoint."""


def train(
    policy: Policy,
    data: Demonstrations,
    spec: JobSpec,
    folder: SftFolder,
    report: Callable[[SftReport], None],
    stop: Callable[[], bool] = lambda: False,
) -> SftReport:
    """Minimise the negative log-likelihood of the labels, as ``training.warmStart`` says; returns the last report.

    Ends after the steps, or at ``untilLoss``: the last report's ``steps`` are those that were done. Resumes from the
    folder's checkpoint. ``stop`` is called after every step: if it returns true, a checkpoint is written and
    :class:`Stopped` is raised. Raises :class:`TrainingDiverged` on a gradient that is not finite.
    """
    settings, seed = spec.training.warm_start, spec.training.seed
    assert settings is not None
    policy.train(settings.trains)
    optimizers = full_optimizers(policy.trainable(), settings.optimizer, settings.learning_rate, settings.weight_decay)
    tokens = Tokens(policy, data.tools, policy.image_tokens(spec.rollout.env_config.image_size).per_image)
    samples = [tokens.sample(demonstration) for demonstration in data.training]
    held_out = [tokens.sample(demonstration) for demonstration in data.validation[:VALIDATION_DECISIONS]]
    checkpoints = SftCheckpoints(folder.checkpoints, data.digest)
    average = WeightAverage(policy, settings.average_decay)
    done = checkpoints.load(policy, optimizers, average.weights)
    folder.metrics.rewind(done)
    every_report, every_checkpoint = pace(settings.steps)
    every_validation = validation_pace(settings, len(held_out), every_report)
    window = _Window()

    def batch_of(step: int) -> tuple[list[Sample], dict[str, Frame]]:
        batch = [samples[index] for index in batch_indices(len(samples), settings.batch_size, seed, step)]
        return batch, decoded(batch, data.images)

    with torch.random.fork_rng(), ThreadPoolExecutor(1, "frames") as reader:
        upcoming = reader.submit(batch_of, done)  # decoded during the step before: on a GPU it takes as long
        while done < settings.steps:
            batch, frames = upcoming.result()
            if done + 1 < settings.steps:
                upcoming = reader.submit(batch_of, done + 1)
            rate = settings.learning_rate * schedule(done, settings.steps)
            torch.manual_seed(int(np.random.SeedSequence([seed, done]).generate_state(1)[0]))  # for dropout
            window.add(rate, *_step(policy, optimizers, batch, frames, rate, policy.plan_memory(spec.training)))
            done += 1
            average.add(done)
            last, whole = done == settings.steps, done % every_checkpoint == 0
            validated = last or whole or done % every_validation == 0
            validation = _validation(policy, average, held_out, data.images) if validated else None
            last = last or _reached(validation, settings.until_loss)
            if not last and stop():
                checkpoints.save(policy, optimizers, average.weights, done)
                raise Stopped(f"stopped after step {done} of {settings.steps}")
            if last or validated or done % every_report == 0:
                means = window.means(settings.batch_size)
                latest = SftReport(done, done if last else settings.steps, *means, validation)
                folder.metrics.append(asdict(latest))
                if whole and not last:
                    checkpoints.save(policy, optimizers, average.weights, done)
                report(latest)
                window = _Window()
            if last:
                break
    average.keep()
    policy.eval()
    return latest


def pace(steps: int) -> tuple[int, int]:
    """Steps from report to report, and from checkpoint, with its validation loss, to checkpoint."""
    every_report = min(50, max(1, steps // 100))
    return every_report, min(500, max(every_report, steps // 10))


def validation_pace(settings: WarmStart, held_out: int, every_report: int) -> int:
    """Steps from one validation loss to the next: with ``until_loss``, it takes a tenth of the time."""
    if settings.until_loss is None:
        return settings.steps
    share = held_out * FORWARD_SHARE / settings.batch_size  # of a step's time
    return every_report * max(1, math.ceil(share / VALIDATION_TIME / every_report))


def _reached(validation: float | None, until_loss: float | None) -> bool:
    return validation is not None and until_loss is not None and validation <= until_loss


def batch_indices(samples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The samples of a step: epoch after epoch, each in an order of its own."""
    indices = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, position = divmod(place, samples)
        indices.append(int(_order(samples, seed, epoch)[position]))
    return indices


@functools.lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(samples)


def decoded(samples: Sequence[Sample], images: Mapping[str, bytes]) -> dict[str, Frame]:
    """The frames of these samples by their hashes, from PNG. Raises ``ValueError`` where one has other pixels."""
    frames = {digest: decode_png(images[digest]) for sample in samples for digest in sample.images}
    for digest, frame in frames.items():
        if frame_hash(frame) != digest:
            raise ValueError(f"image {digest[:12]}: its pixels hash to {frame_hash(frame)[:12]}")
    return frames


def decision_loss(policy: Policy, samples: Sequence[Sample], frames: Mapping[str, Frame]) -> torch.Tensor:
    """Negative log-likelihood of the labels, summed over tokens, mean over decisions."""
    logprobs_T, _ = policy.logprobs(samples, encode(policy, samples, frames), temperature=1.0)
    return -logprobs_T.sum() / len(samples)


def validate(
    policy: Policy, samples: Sequence[Sample], images: Mapping[str, bytes], batch_size: int = 64
) -> float | None:
    """Loss on held-out decisions, without dropout; None if there are none."""
    total = 0.0
    with torch.no_grad(), policy.without_dropout():
        for start in range(0, len(samples), batch_size):
            chunk = samples[start : start + batch_size]
            total += decision_loss(policy, chunk, decoded(chunk, images)).item() * len(chunk)
    return total / len(samples) if samples else None


def _validation(
    policy: Policy, average: WeightAverage, samples: Sequence[Sample], images: Mapping[str, bytes]
) -> float | None:
    with average.in_use():
        return validate(policy, samples, images)


def export(policy: Policy, source: Path, target: Path) -> None:
    """Write the model as a directory with a manifest: weights from the policy, all else from ``source``."""
    draft = folders.new_draft(target.parent, target.name)
    policy.save_model(draft)
    for path in source.iterdir():
        if path.is_file() and not (draft / path.name).exists() and not WEIGHTS.search(path.name):
            shutil.copy2(path, draft)
    write_manifest(draft)
    folders.place(draft, target)


def _step(
    policy: Policy,
    optimizers: Sequence[torch.optim.Optimizer],
    samples: Sequence[Sample],
    frames: Mapping[str, Frame],
    learning_rate: float,
    memory: MemoryPlan,
) -> tuple[float, float]:
    """One optimizer step; loss and gradient norm."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for indices in micro_batches(sequences(samples), samples, memory, policy.image_token):
        part = [samples[index] for index in indices]
        loss = decision_loss(policy, part, frames) * (len(part) / len(samples))
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in policy.trainable()], MAX_GRAD_NORM)
    if not torch.isfinite(norm):
        raise TrainingDiverged(f"gradient norm is {norm.item()}: lower training.warmStart.learningRate")
    for optimizer in optimizers:
        optimizer.step()
    return total, norm.item()


class _Window:
    """Steps since the last report."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rate = self.norm = 0.0
        self.started = time.monotonic()

    def add(self, rate: float, loss: float, norm: float) -> None:
        self.losses.append(loss)
        self.rate, self.norm = rate, max(self.norm, norm)

    def means(self, batch_size: int) -> tuple[float, float, float, float]:
        """Loss, learning rate, gradient norm, decisions per second."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        loss = sum(self.losses) / len(self.losses)
        return loss, self.rate, self.norm, len(self.losses) * batch_size / seconds
