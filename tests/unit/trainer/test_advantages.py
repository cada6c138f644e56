"""Advantages compare peers, as their formulas say; what they ignore is in test_invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from visionrl.job import Algorithm
from visionrl_trainer.algo import advantages
from visionrl_trainer.algo.advantages import with_advantages
from visionrl_trainer.rollout.batch import EpisodeSamples, Group, Sample

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


@given(st.lists(arrays(np.float64, st.integers(1, 9), elements=st.floats(-10, 10)), min_size=1, max_size=6))
def test_scaled_advantages_have_unit_deviation_over_episodes_or_are_zero(episodes: list[np.ndarray]) -> None:
    def deviation(of: list[np.ndarray]) -> float:
        return float(np.sqrt(np.mean([np.mean(values**2) for values in of])))

    found = advantages.scaled(episodes)
    assert deviation(found) == pytest.approx(1, abs=1e-2) or deviation(episodes) < 1e-4
    assert all(np.isfinite(values).all() for values in found)


def group(*rewards: list[float]) -> Group:
    """Episodes with these rewards, one sample per turn."""
    sample = Sample((1,), (2,), (-1.0,), (), "m")
    return Group(
        1,
        tuple(
            EpisodeSamples(1, (sample,) * len(row), tuple(row), tuple(map(str, range(len(row)))), sum(row), 0)
            for row in rewards
        ),
    )


def values(groups: list[Group], **settings: str) -> list[float]:
    return [sample.advantage for sample in with_advantages(groups, Algorithm.model_validate(settings, by_name=True))]


def test_outcome_advantages_by_group_deviation() -> None:
    assert values([group([0, 0], [1, 1])], scale="group") == pytest.approx([-1, -1, 1, 1], abs=1e-3)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_a_long_episode_does_not_change_the_deviation_of_the_returns(scale: str) -> None:
    """Returns 1, 0, 0, 0: GRPO's advantages are +√3 and −1/√3, whatever the lengths."""
    found = values([group([1.0] + [0.0] * 29, [0.0], [0.0], [0.0])], scale=scale)
    assert found[:30] == pytest.approx([3**0.5] * 30, abs=1e-4)
    assert found[30:] == pytest.approx([-(3**-0.5)] * 3, abs=1e-4)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-3, 3)), min_size=2, max_size=6))
def test_outcome_by_group_is_grpo_for_all_lengths(episodes: list[tuple[int, int]]) -> None:
    returns = np.array([total for _, total in episodes], dtype=float)
    found = values([group(*([0.0] * (turns - 1) + [float(total)] for turns, total in episodes))], scale="group")
    expected = (returns - returns.mean()) / (returns.std() or 1)
    assert found == pytest.approx(np.repeat(expected, [turns for turns, _ in episodes]), abs=1e-4)


def test_an_episode_that_ended_early_gives_only_its_own_samples() -> None:
    assert values([group([0], [1, 0, 2])], advantage="turn", scale="none") == pytest.approx([-1.5, 1.5, 1, 1])


def test_a_group_without_variance_teaches_nothing() -> None:
    same = group([1, 0], [0, 1])
    assert not same.has_variance
    assert values([same]) == [0, 0, 0, 0]
