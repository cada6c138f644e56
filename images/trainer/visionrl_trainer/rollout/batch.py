"""Training samples: decisions, their episodes and groups, and which of them form one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""Placeholders that a policy could sample by accident; no server accepts them in a later prompt. Banned."""


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
    trained: tuple[float, ...] | None = None
    """Logprobs of ``completion_ids``, as the trainer computes them with the weights that sampled; ``None`` where the
    update is to compute them."""


@dataclass(frozen=True)
class Answer:
    """What a decision shows to people."""

    text: str
    actions: tuple[str, ...]
    events: tuple[str, ...]
    """What happened for the first time in the episode."""
    valid: bool
    error: str | None = None
    """Why the answer was not valid."""


@dataclass(frozen=True)
class EpisodeSamples:
    """One played episode: its samples and the reward of every turn."""

    seed: int
    samples: tuple[Sample, ...]
    rewards: tuple[float, ...]
    states: tuple[str, ...]
    """Hash of the simulator's state before each decision."""
    score: float
    """Return of the episode as the environment counts it, without step rewards and penalties."""
    invalid: int
    """Decisions without a usable tool call."""
    run_id: str = ""
    """Of the rollout that played it."""
    answers: tuple[Answer, ...] = ()
    """Of each decision."""

    @property
    def events(self) -> set[str]:
        """What happened in the episode."""
        return {event for answer in self.answers for event in answer.events}


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
    image_size: int
    """Height and width of a frame, pixels."""
    vocabulary: int
    """Number of ids."""
    banned_ids: frozenset[int]
    """Ids that are never sampled."""


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
