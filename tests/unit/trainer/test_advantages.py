"""Advantages compare peers, as their formulas say; what they ignore is in test_invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visionrl_trainer.algo import advantages

REWARDS = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 7)), elements=st.integers(-3, 3).map(float))
GAMMA = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@given(REWARDS)
def test_outcome_is_the_return_minus_the_groups_mean(rewards: np.ndarray) -> None:
    found = advantages.outcome(rewards)
    returns = [sum(row) for row in rewards]
    for row, own in zip(found, returns, strict=True):
        assert row == pytest.approx([own - sum(returns) / len(returns)] * len(row))


@given(REWARDS, GAMMA)
def test_turn_level_sums_to_zero_at_every_turn(rewards: np.ndarray, gamma: float) -> None:
    assert advantages.turn_level(rewards, gamma).sum(axis=0) == pytest.approx(0, abs=1e-9)


@given(REWARDS, GAMMA)
def test_returns_to_go_follow_bellman(rewards: np.ndarray, gamma: float) -> None:
    to_go = advantages.returns_to_go(rewards, gamma)
    later = np.concatenate([to_go[:, 1:], np.zeros((len(rewards), 1))], axis=1)
    assert to_go == pytest.approx(rewards + gamma * later)


def test_state_anchored_compares_decisions_from_one_state() -> None:
    rewards = np.array([[0.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    states = [["start", "tree"], ["start", "tree"], ["start", "water"]]
    found = advantages.state_anchored(rewards, states, gamma=1.0)
    episode = advantages.outcome(rewards)
    step = found - episode
    assert step[:, 0] == pytest.approx([0.0, -1.0, 1.0])  # returns-to-go 1, 0, 2 from the start
    assert step[:, 1] == pytest.approx([0.5, -0.5, 0.0])  # water was visited once: nothing to compare with


@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(-10, 10)))
def test_scaled_values_have_unit_deviation_or_are_zero(values: np.ndarray) -> None:
    found = advantages.scaled(values)
    assert np.isfinite(found).all()
    assert found.std() == pytest.approx(1, abs=1e-2) or values.std() < 1e-4
