"""Batches with the layout of Qwen3-VL-4B's prompts, of random text and frames."""

from __future__ import annotations

import numpy as np
import torch

from visionrl.frames import frame_hash
from visionrl_trainer.algo.update import encode
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample

SHARED, OWN, COMPLETION = 1089, 68, 36
"""Tokens of system prompt and tools, of a prompt's own text, of an answer."""


def qwen_batch(
    policy: Policy, decisions: int, image_size: int, temperature: float
) -> tuple[list[Sample], dict[str, Frame]]:
    """Decisions as if this policy had sampled them, half of them rewarded, and their frames."""
    random = np.random.default_rng(0)
    expect = policy.image_tokens(image_size)
    special = {*policy.processor.tokenizer.all_special_ids, expect.placeholder_id, *policy.banned_ids}
    text = [token for token in range(min(expect.vocabulary, 20_000)) if token not in special]
    system = tuple(random.choice(text, SHARED).tolist())
    frames: dict[str, Frame] = {}
    samples = []
    for index in range(decisions):
        frame = random.integers(256, size=(image_size, image_size, 3), dtype=np.uint8)
        frames[frame_hash(frame)] = frame
        prompt = (*system, *[expect.placeholder_id] * expect.per_image, *random.choice(text, OWN).tolist())
        answer = tuple(random.choice(text, COMPLETION).tolist())
        samples.append(Sample(prompt, answer, (), (frame_hash(frame),), "v", 1.0 if index % 2 else -1.0))
    served: list[Sample] = []
    with torch.no_grad():
        for start in range(0, decisions, 8):
            part = samples[start : start + 8]
            logprobs_T, _ = policy.logprobs(part, encode(policy, part, frames), temperature)
            values = logprobs_T.split(COMPLETION)
            served += [
                Sample(s.prompt_ids, s.completion_ids, tuple(v.tolist()), s.images, s.model, s.advantage)
                for s, v in zip(part, values, strict=True)
            ]
    return served, frames
