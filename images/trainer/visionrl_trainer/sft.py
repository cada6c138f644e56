"""Supervised training: all weights, on demonstrations, to a model directory that anyone can serve."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionrl.durable import fsync
from visionrl.images import decode_png, frame_hash
from visionrl.job import WarmStart
from visionrl_trainer.batch import Sample
from visionrl_trainer.model import Policy, Vision
from visionrl_trainer.optim import full_optimizers, schedule
from visionrl_trainer.publish import write_manifest
from visionrl_trainer.teacher import Demonstration, Demonstrations

logger = logging.getLogger(__name__)

REPORT_EVERY = 50
CHECKPOINT_EVERY = 500
VALIDATION_DECISIONS = 384


@dataclass(frozen=True)
class SftReport:
    """How far supervised training is. Losses are nats per decision."""

    step: int
    steps: int
    loss: float
    validation_loss: float | None = None


class Tokens:
    """Demonstrations as samples, by the processor's chat template; one tokenisation a distinct prompt."""

    def __init__(self, policy: Policy, tools: list[dict[str, Any]] | None, per_image: int) -> None:
        self.tokenizer, self.processor = policy.processor.tokenizer, policy.processor
        self.tools, self.per_image = tools, per_image
        self._ids: dict[str, tuple[int, ...]] = {}

    def sample(self, demonstration: Demonstration) -> Sample:
        """The decision as prompt and completion ids; logprobs stay empty."""
        prompt = self.processor.apply_chat_template(
            [_template_message(message) for message in demonstration.messages],
            tools=self.tools,
            add_generation_prompt=True,
            tokenize=False,
        )
        placeholder = self.processor.image_token
        prompt_ids = self._encode(prompt.replace(placeholder, placeholder * self.per_image))
        completion_ids = (*self._encode(demonstration.label), self.tokenizer.eos_token_id)
        return Sample(prompt_ids, completion_ids, (), demonstration.images, model="teacher")

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            self._ids[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._ids[text]


def train(
    policy: Policy,
    data: Demonstrations,
    settings: WarmStart,
    image_size: int,
    seed: int,
    checkpoint: Path,
    report: Callable[[SftReport], None],
) -> float:
    """Minimise the negative log-likelihood of the labels; returns the validation loss in nats per decision.

    Trains what ``settings.trains`` says. ``checkpoint`` is written every few hundred steps and resumed from when it
    exists.
    """
    policy.train(settings.trains)
    parameters = policy.trainable()
    optimizers = full_optimizers(parameters, settings.optimizer, settings.learning_rate, settings.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    tokens = Tokens(policy, data.tools, policy.image_tokens(image_size).per_image)
    samples = [tokens.sample(demonstration) for demonstration in data.training]
    held_out = [tokens.sample(demonstration) for demonstration in data.validation]
    first = _resume(policy, optimizers, generator, checkpoint)
    losses: list[float] = []
    for step in range(first, settings.steps):
        rate = settings.learning_rate * schedule(step, settings.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        chosen = torch.randint(len(samples), (settings.batch_size,), generator=generator).tolist()
        loss = decision_loss(policy, [samples[index] for index in chosen], data.images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in parameters], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 and done < settings.steps:
            _save(policy, optimizers, generator, done, checkpoint)
            report(SftReport(done, settings.steps, _recent(losses), validate(policy, held_out, data.images)))
        elif done % REPORT_EVERY == 0:
            report(SftReport(done, settings.steps, _recent(losses)))
    policy.eval()
    validation = validate(policy, held_out, data.images)
    report(SftReport(settings.steps, settings.steps, _recent(losses), validation))
    return validation


def _recent(losses: Sequence[float]) -> float:
    recent = losses[-REPORT_EVERY:]
    return sum(recent) / max(1, len(recent))


def decision_loss(policy: Policy, samples: Sequence[Sample], images: dict[str, bytes]) -> torch.Tensor:
    """Negative log-likelihood of the labels, summed over tokens, mean over decisions."""
    logprobs_T, _ = policy.logprobs(samples, _see(policy, samples, images), temperature=1.0)
    return -logprobs_T.sum() / len(samples)


def validate(policy: Policy, samples: Sequence[Sample], images: dict[str, bytes], batch_size: int = 64) -> float:
    """Loss on held-out episodes, nats per decision."""
    chosen = samples[:VALIDATION_DECISIONS]
    with torch.no_grad():
        chunks = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        total = sum(decision_loss(policy, chunk, images).item() * len(chunk) for chunk in chunks)
    return total / max(1, len(chosen))


def export(policy: Policy, source: Path, target: Path) -> None:
    """Write the model as a directory with a manifest: weights from the policy, all else from ``source``."""
    draft = target.with_name(f".{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    policy.model.save_pretrained(draft)
    for path in source.iterdir():
        if path.is_file() and not (draft / path.name).exists() and path.suffix != ".safetensors":
            shutil.copy2(path, draft)
    write_manifest(draft, "base")
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    fsync(target.parent)


def _see(policy: Policy, samples: Sequence[Sample], images: dict[str, bytes]) -> dict[str, Vision]:
    digests = list(dict.fromkeys(digest for sample in samples for digest in sample.images))
    frames = [decode_png(images[digest]) for digest in digests]
    for digest, frame in zip(digests, frames, strict=True):
        if frame_hash(frame) != digest:
            raise ValueError(f"image {digest[:12]}: its pixels hash to {frame_hash(frame)[:12]}")
    return dict(zip(digests, policy.see(frames), strict=True))


def _template_message(message: dict[str, Any]) -> dict[str, Any]:
    """A recorded message as the chat template takes it: images by place, not by hash."""
    if isinstance(message["content"], str):
        return message
    parts = [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
    return {**message, "content": parts}


def _save(
    policy: Policy, optimizers: Sequence[torch.optim.Optimizer], generator: torch.Generator, step: int, path: Path
) -> None:
    draft = path.with_suffix(".draft")
    state = {
        "step": step,
        "weights": {name: parameter.detach() for name, parameter in policy.trainable()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "generator": generator.get_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, draft)
    fsync(draft)
    draft.rename(path)


def _resume(policy: Policy, optimizers: Sequence[torch.optim.Optimizer], generator: torch.Generator, path: Path) -> int:
    """Restore the checkpoint, if there is one; returns the step to go on with."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=policy.device, weights_only=True)
    with torch.no_grad():
        for name, parameter in policy.trainable():
            parameter.copy_(saved["weights"][name])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    generator.set_state(saved["generator"].cpu())
    return int(saved["step"])
