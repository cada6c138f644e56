"""Advantages: how much better a decision turned out than its peers. Pure functions over one group's rewards.

A group is G episodes from one start state; ``rewards_GT`` holds the reward of every turn, zero after an episode's
end. The functions of a group return ``advantages_GT`` before scaling.

A truncated episode (cut at ``maxLlmCalls`` or ``rollout.maxOps``) counts with the rewards that it earned until then:
nothing is bootstrapped for the turns that it was not allowed. Within a group all episodes have the same limits, so the
comparison is fair; what is credited is the return within the limits, not the return of an unlimited game.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from visionrl.job import Algorithm
from visionrl_trainer.rollout.batch import Group, Sample

Array = NDArray[np.float64]
EPSILON = 1e-6


def with_advantages(groups: Sequence[Group], algorithm: Algorithm) -> list[Sample]:
    """All samples of the groups with their advantages, scaled as the job says."""
    per_group = [group_advantages(group, algorithm) for group in groups]
    if algorithm.scale == "group":
        per_group = [scaled(episodes) for episodes in per_group]
    per_episode = [values_T for episodes in per_group for values_T in episodes]
    if algorithm.scale == "batch":
        per_episode = scaled(per_episode)
    samples = [sample for group in groups for episode in group.episodes for sample in episode.samples]
    values = [float(value) for values_T in per_episode for value in values_T]
    return [replace(sample, advantage=value) for sample, value in zip(samples, values, strict=True)]


def group_advantages(group: Group, algorithm: Algorithm) -> list[Array]:
    """Advantages of each episode's decisions."""
    rewards_GT = group.rewards_GT()
    if algorithm.advantage == "outcome":
        values_GT = outcome(rewards_GT)
    elif algorithm.advantage == "turn":
        values_GT = turn_level(rewards_GT, algorithm.gamma)
    else:
        states = [list(episode.states) for episode in group.episodes]
        values_GT = state_anchored(rewards_GT, states, algorithm.gamma)
    values_GT[np.abs(values_GT) < EPSILON] = 0  # rounding is no signal
    lengths = [len(episode.samples) for episode in group.episodes]
    return [values_T[:length] for values_T, length in zip(values_GT, lengths, strict=True)]


def scaled(episodes: Sequence[Array]) -> list[Array]:
    """Advantages divided by their deviation over episodes; all zero where there is none.

    The deviation is the root of the episodes' mean squares. Each episode counts once, however many turns it has: with
    ``outcome`` this is the standard deviation of the returns (GRPO, arXiv:2402.03300, §4.1).
    """
    deviation = float(np.sqrt(np.mean([np.mean(values_T**2) for values_T in episodes])))
    if not deviation > EPSILON:
        return [np.zeros_like(values_T) for values_T in episodes]
    return [values_T / (deviation + EPSILON) for values_T in episodes]


def outcome(rewards_GT: Array) -> Array:
    """Return of the episode minus the group's mean, the same for every turn (GRPO, arXiv:2402.03300, §4.1)."""
    returns_G = rewards_GT.sum(axis=1)
    return np.repeat((returns_G - returns_G.mean())[:, None], rewards_GT.shape[1], axis=1)


def turn_level(rewards_GT: Array, gamma: float) -> Array:
    """Discounted return-to-go minus the group's mean at the same turn (Monte-Carlo credit with a per-turn baseline).

    An episode that has ended counts with a return-to-go of zero, so surviving is credited with what the others still
    earn.
    """
    to_go_GT = returns_to_go(rewards_GT, gamma)
    return to_go_GT - to_go_GT.mean(axis=0, keepdims=True)


def state_anchored(rewards_GT: Array, states_GT: list[list[str]], gamma: float, weight: float = 1.0) -> Array:
    """GiGPO (arXiv:2505.10978): episode advantage plus a comparison of decisions taken from one simulator state.

    ``states_GT[g][t]`` is the hash of the state before the decision; rows may be shorter than T. A state that was
    visited once has no peers and adds nothing.
    """
    to_go_GT = returns_to_go(rewards_GT, gamma)
    visits: dict[str, list[tuple[int, int]]] = {}
    for g, states in enumerate(states_GT):
        for t, state in enumerate(states):
            visits.setdefault(state, []).append((g, t))
    step_GT = np.zeros_like(rewards_GT)
    for places in visits.values():
        values = np.array([to_go_GT[place] for place in places])
        for place, value in zip(places, values - values.mean(), strict=True):
            step_GT[place] = value
    return outcome(rewards_GT) + weight * step_GT


def returns_to_go(rewards_GT: Array, gamma: float) -> Array:
    """``R_t = r_t + γ R_{t+1}`` along the last axis."""
    to_go = np.zeros_like(rewards_GT)
    later = np.zeros(rewards_GT.shape[0])
    for t in range(rewards_GT.shape[1] - 1, -1, -1):
        later = rewards_GT[:, t] + gamma * later
        to_go[:, t] = later
    return to_go
