"""Advantages: how much better a decision turned out than its peers. Pure functions over one group's rewards.

A group is G episodes from one start state; ``rewards_GT`` holds the reward of every turn, zero after an episode's
end. All functions return ``advantages_GT``, not yet divided by a batch's standard deviation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPSILON = 1e-6


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


def scaled(advantages_N: Array) -> Array:
    """Divided by the standard deviation; all zero where there is none."""
    deviation = advantages_N.std()
    return advantages_N / (deviation + EPSILON) if deviation > EPSILON else np.zeros_like(advantages_N)
