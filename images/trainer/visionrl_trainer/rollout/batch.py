"""From trajectories to training samples: exactly what was sampled, after consistency checks."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionrl.frames import decode_png, frame_hash
from visionrl.rollout import Decision, RolloutResponse

Frame = NDArray[np.uint8]

VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""Placeholders that a policy could sample by accident; no server accepts them in a later prompt. Banned."""


class SampleRejected(ValueError):
    """A decision that must not be trained on; the message says why."""


@dataclass(frozen=True)
class Sample:
    """One decision to train on."""

    prompt_ids: tuple[int, ...]
    """As the server expanded it: one placeholder id per visual token."""
    completion_ids: tuple[int, ...]
    """Sampled ids, stop token included."""
    logprobs: tuple[float, ...]
    """Of ``completion_ids``, as the server reported them."""
    images: tuple[str, ...]
    """Hashes of the frames, in the order of the prompt."""
    model: str
    """Adapter that sampled."""
    advantage: float = 0.0


@dataclass(frozen=True)
class EpisodeSamples:
    """One played episode: its samples and the reward of every turn."""

    seed: int
    samples: tuple[Sample, ...]
    rewards: tuple[float, ...]
    states: tuple[str, ...]
    """Hash of the simulator's state before each decision."""
    achievements: float
    """Unique achievements of the episode."""
    invalid: int
    """Decisions without a usable tool call."""


@dataclass(frozen=True)
class Group:
    """Episodes from one start state."""

    seed: int
    episodes: tuple[EpisodeSamples, ...]

    def rewards_GT(self) -> NDArray[np.float64]:
        """Rewards, zero after an episode's end; shape [episodes, longest]."""
        rewards = np.zeros((len(self.episodes), max(len(episode.rewards) for episode in self.episodes)))
        for row, episode in zip(rewards, self.episodes, strict=True):
            row[: len(episode.rewards)] = episode.rewards
        return rewards

    @property
    def has_variance(self) -> bool:
        """Whether the episodes earned different rewards; a group without variance teaches nothing."""
        return len({round(sum(episode.rewards), 9) for episode in self.episodes}) > 1


@dataclass(frozen=True)
class ImageTokens:
    """What is known of the ids in a prompt and of those that can be sampled."""

    placeholder_id: int
    per_image: int
    """Visual tokens of one frame."""
    banned_ids: frozenset[int]
    """Ids that can never be sampled."""


def read_episode(response: RolloutResponse, seed: int, expect: ImageTokens, frames: dict[str, Frame]) -> EpisodeSamples:
    """Check a played episode and return its samples; its frames are added to ``frames``.

    Raises :class:`SampleRejected` where ids, logprobs, images or placeholders disagree.
    """
    decisions = response.trajectories[0].decisions
    for digest, encoded in response.images.items():
        if digest not in frames:
            frames[digest] = _checked_frame(digest, encoded)
    return EpisodeSamples(
        seed=seed,
        samples=tuple(read_sample(decision, expect, frames) for decision in decisions),
        rewards=tuple(decision.reward.total for decision in decisions),
        states=tuple(decision.state_hash for decision in decisions),
        achievements=response.metrics.episode_returns[0],
        invalid=sum(not decision.valid for decision in decisions),
    )


def read_sample(decision: Decision, expect: ImageTokens, frames: Mapping[str, Frame]) -> Sample:
    """One decision as a sample. Raises :class:`SampleRejected`."""
    where = f"decision {decision.index}"
    prompt, completion, logprobs = decision.prompt_token_ids, decision.token_ids, decision.logprobs
    if not prompt or not completion or logprobs is None:
        raise SampleRejected(f"{where}: no token ids or logprobs")
    if len(completion) != len(logprobs):
        raise SampleRejected(f"{where}: {len(completion)} tokens, but {len(logprobs)} logprobs")
    if not all(math.isfinite(logprob) for logprob in logprobs):
        raise SampleRejected(f"{where}: a logprob is not finite")
    if found := expect.banned_ids.intersection(completion):
        raise SampleRejected(f"{where}: sampled banned token {min(found)}")
    placeholders = prompt.count(expect.placeholder_id)
    if placeholders != expect.per_image * len(decision.images):
        raise SampleRejected(
            f"{where}: {placeholders} visual tokens for {len(decision.images)} images of {expect.per_image} each"
        )
    if missing := [digest for digest in decision.images if digest not in frames]:
        raise SampleRejected(f"{where}: image {missing[0][:12]} was not sent")
    return Sample(tuple(prompt), tuple(completion), tuple(logprobs), tuple(decision.images), decision.model)


def sequences(samples: Sequence[Sample]) -> list[range]:
    """Ranges of consecutive samples in which each prompt continues the one before, token for token.

    The turns of a segment form one sequence: they are computed as one row, in which each answer attends to the tokens
    that it was sampled after. A sequence ends where the chat template renders an answer differently than it was
    sampled.
    """
    found: list[range] = []
    for index, sample in enumerate(samples):
        if found and _continues(samples[index - 1], sample):
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def _continues(before: Sample, after: Sample) -> bool:
    seen = before.prompt_ids + before.completion_ids
    return after.prompt_ids[: len(seen)] == seen and after.images[: len(before.images)] == before.images


def _checked_frame(digest: str, encoded: str) -> Frame:
    try:
        frame = decode_png(base64.b64decode(encoded, validate=True))
    except ValueError as error:
        raise SampleRejected(f"image {digest[:12]}: {error}") from error
    if (found := frame_hash(frame)) != digest:
        raise SampleRejected(f"image {digest[:12]}: its pixels hash to {found[:12]}")
    return frame
