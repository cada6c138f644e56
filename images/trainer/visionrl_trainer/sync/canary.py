"""The canary: before rollouts move to a version, one request shows that the server really serves it."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from visionrl.frames import frame_hash
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample

logger = logging.getLogger(__name__)

TOKENS = 8
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest absolute logprob difference by the model's dtype; measured: 8e-6 in float32, 0.06 in bfloat16."""


class CanaryFailed(RuntimeError):
    """The server answers with other weights than the trainer's."""


@dataclass(frozen=True)
class CanaryResult:
    max_difference: float
    """Between serving and training, nats."""
    moved: float
    """Largest difference to the base model on the same tokens: an adapter that does nothing moves nothing."""


async def check(
    client: httpx.AsyncClient, policy: Policy, version: str, dtype: str, image_size: int, temperature: float
) -> CanaryResult:
    """Ask for a short answer from ``version`` and compare its logprobs with the trainer's.

    Raises :class:`CanaryFailed` where they differ, ``httpx.HTTPError`` where the server does not answer.
    """
    frame = canary_frame(version, image_size)
    answer = await client.post("/v1/chat/completions", json=request(version, frame, policy, temperature))
    answer.raise_for_status()
    sample = read_answer(answer.json(), frame, version)
    trained, base = compare(policy, sample, frame, temperature)
    served = torch.tensor(sample.logprobs)
    result = CanaryResult((trained - served).abs().max().item(), (trained - base).abs().max().item())
    if result.max_difference > TOLERANCE[dtype]:
        raise CanaryFailed(
            f"{version}: the server's logprobs differ from the trainer's by {result.max_difference:.3g} nats "
            f"(limit {TOLERANCE[dtype]:g}); it serves other weights"
        )
    return result


def canary_frame(version: str, size: int) -> Frame:
    """Noise, different for every version, so that no cached prefix can answer."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(version.encode()).digest()[:8]))
    return generator.integers(0, 256, size=(size, size, 3), dtype=np.uint8)


def request(version: str, frame: Frame, policy: Policy, temperature: float) -> dict[str, Any]:
    """The chat completion that is asked for: exact ids, unmasked logprobs, the whole distribution."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {
        "model": version,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
        "max_tokens": TOKENS,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": -1,
        "logprobs": True,
        "return_token_ids": True,
        "logit_bias": {str(token): -100 for token in sorted(policy.banned_ids)},
    }


def read_answer(answer: dict[str, Any], frame: Frame, version: str) -> Sample:
    """The answer as a sample."""
    choice = answer["choices"][0]
    return Sample(
        prompt_ids=tuple(answer["prompt_token_ids"]),
        completion_ids=tuple(choice["token_ids"]),
        logprobs=tuple(token["logprob"] for token in choice["logprobs"]["content"]),
        images=(frame_hash(frame),),
        model=version,
    )


def compare(policy: Policy, sample: Sample, frame: Frame, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced logprobs of the sample under the adapter and under the base."""
    with torch.no_grad():
        image_features = {sample.images[0]: policy.encode_images([frame])[0]}
        trained, _ = policy.logprobs([sample], image_features, temperature)
        with policy.without_adapter():
            base, _ = policy.logprobs([sample], image_features, temperature)
    return trained.cpu(), base.cpu()
