"""What a decision earns."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.job import Rewards
from visionrl.rollout import RewardSplit
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS
from visionrl_taskapp.rollouts import rewards as rollout_rewards

UNLOCKED = ("collect_wood", "place_table")


def decision_reward(unlocked: Sequence[str], valid: bool, env_reward: float, rewards: Rewards) -> RewardSplit:
    """Of a decision in Crafter, where each event scores 1."""
    return rollout_rewards.decision_reward(len(unlocked), unlocked, valid, env_reward, rewards)


def test_each_new_achievement_earns_one() -> None:
    assert decision_reward(UNLOCKED, True, 1.0, Rewards()).total == 2


def test_nothing_new_earns_nothing() -> None:
    assert decision_reward((), True, 0.3, Rewards()).total == 0


def test_crafters_own_reward_is_told_and_not_counted() -> None:
    reward = decision_reward((), True, -0.2, Rewards())
    assert (reward.env, reward.total) == (-0.2, 0)


def test_consistent_step_reward_is_lambda_however_many_unlock() -> None:
    rewards = Rewards(step_rewards="consistent", step_lambda=0.5)
    assert decision_reward(UNLOCKED, True, 1.0, rewards).step == 0.5
    assert decision_reward((), True, 0.0, rewards).step == 0


def test_per_achievement_step_reward_is_the_sum_of_weights_and_one_where_none_is_given() -> None:
    rewards = Rewards(step_rewards="per_achievement", weights={"place_table": 3.0})
    assert decision_reward(UNLOCKED, True, 1.0, rewards).step == pytest.approx(4.0)


def test_an_invalid_answer_costs_the_penalty() -> None:
    rewards = Rewards(invalid_penalty=0.25)
    assert decision_reward((), False, 0.0, rewards).total == -0.25
    assert decision_reward((), True, 0.0, rewards).penalty == 0


@given(st.lists(st.sampled_from(ACHIEVEMENTS), unique=True), st.booleans())
def test_without_step_rewards_and_penalty_the_total_counts_achievements(unlocked: list[str], valid: bool) -> None:
    assert decision_reward(unlocked, valid, 0.0, Rewards()).total == len(unlocked)
