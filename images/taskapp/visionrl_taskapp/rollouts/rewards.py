"""The reward of one decision, as pure functions of what it unlocked."""

from __future__ import annotations

from collections.abc import Sequence

from visionrl.job import Rewards
from visionrl.rollout import RewardSplit


def decision_reward(
    score: float, unlocked: Sequence[str], valid: bool, env_reward: float, rewards: Rewards
) -> RewardSplit:
    """Split a decision's reward.

    `score` is what it added to the return, `unlocked` are the events that it reached for the first time in its episode,
    `valid` says whether the response was a usable tool call, `env_reward` is the environment's own reward summed over
    the actions.
    """
    return RewardSplit(
        event=float(score),
        step=step_reward(unlocked, rewards),
        penalty=0.0 if valid else rewards.invalid_penalty,
        env=env_reward,
    )


def step_reward(unlocked: Sequence[str], rewards: Rewards) -> float:
    """The job's additional reward for a decision that unlocked something."""
    match rewards.step_rewards:
        case "off":
            return 0.0
        case "consistent":
            return rewards.step_lambda if unlocked else 0.0
        case "per_achievement":
            return float(sum(rewards.weights.get(name, 1.0) for name in unlocked))
