"""The canary's image prompt: a short answer to a frame, whose logprobs the trainer computes too."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionrl.frames import frame_hash
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample
from visionrl_trainer.sync.inference_client import UnusableAnswer

TOKENS = 8


def frame(version: str, size: int) -> Frame:
    """Noise, different for every version, so that no cached prefix can answer."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(version.encode()).digest()[:8]))
    return generator.integers(0, 256, size=(size, size, 3), dtype=np.uint8)


def request(version: str, frame: Frame, banned: Collection[int], temperature: float) -> dict[str, Any]:
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
        "logit_bias": {str(token): -100 for token in sorted(banned)},
    }


def read(answer: Any, frame: Frame, policy: Policy) -> Sample:
    """The answer as a sample that the policy can compute. Raises :class:`UnusableAnswer`."""
    expect, vocabulary = policy.image_tokens(len(frame)), policy.model.config.text_config.vocab_size
    try:
        choice = answer["choices"][0]
        prompt, completion = tuple(answer["prompt_token_ids"]), tuple(choice["token_ids"])
        logprobs = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
        known = all(type(token) is int and 0 <= token < vocabulary for token in prompt + completion)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnusableAnswer(f"no completion with token ids and logprobs ({type(error).__name__}: {error})") from None
    if not (prompt and completion and known and len(logprobs) == len(completion)):
        raise UnusableAnswer("token ids are missing or outside of the vocabulary, or have no logprobs")
    placeholders = [index for index, token in enumerate(prompt) if token == expect.placeholder_id]
    if not placeholders or placeholders != list(range(placeholders[0], placeholders[0] + expect.per_image)):
        raise UnusableAnswer(
            f"the frame has {len(placeholders)} tokens in the prompt, not {expect.per_image} in a row: the image "
            "processors of server and trainer differ"
        )
    return Sample(prompt, completion, logprobs, (frame_hash(frame),), "")


def trained_logprobs(policy: Policy, sample: Sample, frame: Frame, temperature: float) -> Tensor:
    """Teacher-forced logprobs of the sample's tokens [T]."""
    with torch.no_grad():
        features = {sample.images[0]: policy.encode_images([frame])[0]}
        return policy.logprobs([sample], features, temperature)[0].cpu()
