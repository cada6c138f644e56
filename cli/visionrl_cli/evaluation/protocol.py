"""The protocol of published scores: whole episodes, as long as the environment lets them be, on 30 seeds or more."""

from __future__ import annotations

from visionrl.job import EnvSettings, Rollout
from visionrl_cli.evaluation.text import EvalError

STANDARD = "standard"

SEEDS = tuple(range(30))
"""The seeds where none are named, and the fewest."""

EPISODE_SECONDS = 86_400.0
"""Wall-clock limit of an episode: 10,000 turns of a model are hours."""


def with_whole_episodes(rollout: Rollout) -> Rollout:
    """The settings with the environment's own difficulty and length, and no tighter limit on turns or operations.

    What the policy sees and how it answers stays: image size, history, actions in a turn.
    """
    unset = EnvSettings()
    env = rollout.env_config.model_copy(update={"difficulty": unset.difficulty, "length": unset.length})
    # Each turn plays an action at least, so that there are never more turns than steps.
    policy = rollout.policy_config.model_copy(update={"max_llm_calls": unset.length})
    limits = {"max_ops": 2 * unset.length, "max_time_s": EPISODE_SECONDS}
    return rollout.model_copy(update={"env_config": env, "policy_config": policy, **limits})


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raises :class:`EvalError` for too few."""
    if len(seeds) < len(SEEDS):
        raise EvalError(f"--seeds: {len(seeds)} seeds; the {STANDARD} protocol asks for {len(SEEDS)} or more")
