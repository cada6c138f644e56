"""Play that ignores the observation: the baseline that a policy which uses its frames must beat.

*crafter-blind* draws `max_actions` actions from one fixed distribution, the best that the cross-entropy method
(Rubinstein 1999) finds: what is reached by knowing the game and never looking at it. The distribution was found with:

    python -m visionrl_taskapp.envs.crafter.blind --search

for episodes of 30 decisions of 4 actions, on seeds that no evaluation uses. Without `--search` the stored one is
measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

import numpy as np

from visionrl.job import FIRST_TRAINING_SEED
from visionrl_taskapp.envs.crafter.rules import ACTIONS

BLIND_PROBABILITIES: Mapping[str, float] = {
    "noop": 0.006,
    "move_left": 0.099,
    "move_right": 0.001,
    "move_up": 0.034,
    "move_down": 0.123,
    "do": 0.478,
    "sleep": 0.08,
    "place_stone": 0.015,
    "place_table": 0.039,
    "place_furnace": 0.003,
    "place_plant": 0.061,
    "make_wood_pickaxe": 0.011,
    "make_stone_pickaxe": 0.02,
    "make_iron_pickaxe": 0.021,
    "make_wood_sword": 0.003,
    "make_stone_sword": 0.002,
    "make_iron_sword": 0.005,
}
"""Probability of each action; those that are not named are never drawn."""

_TURNS, _ACTIONS_PER_TURN = 30, 4
_GENERATIONS, _POPULATION, _ELITE, _EPISODES = 24, 32, 8, 16
_SMOOTHING, _FLOOR = 0.7, 0.05


# --- finding the distribution


def search(seed: int = 0) -> dict[str, float]:
    """The best distribution over actions by the cross-entropy method on its logits; prints each generation."""
    rng = np.random.default_rng(seed)
    mean, spread = np.zeros(len(ACTIONS)), np.full(len(ACTIONS), 1.5)
    for generation in range(_GENERATIONS):
        seeds = rng.integers(FIRST_TRAINING_SEED, 2**31, size=_EPISODES).tolist()
        logits = mean + spread * rng.normal(size=(_POPULATION, len(ACTIONS)))
        scores = np.array([_score(_softmax(row), seeds).mean() for row in logits])
        elite = logits[np.argsort(scores)[-_ELITE:]]
        mean = (1 - _SMOOTHING) * mean + _SMOOTHING * elite.mean(axis=0)
        spread = (1 - _SMOOTHING) * spread + _SMOOTHING * elite.std(axis=0) + _FLOOR
        line = f"generation {generation + 1}/{_GENERATIONS}: mean {scores.mean():.2f}, best {scores.max():.2f}"
        print(line, flush=True)
    return dict(zip(ACTIONS, _softmax(mean).tolist(), strict=True))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _score(probabilities: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Unique achievements of an episode from each seed."""
    from visionrl_taskapp.envs.crafter.env import (
        CrafterEnv,
    )  # compiles the renderer, which the policies above do not need

    env, found = CrafterEnv(), []
    for seed in seeds:
        env.reset(seed)
        rng = np.random.default_rng(seed)
        for action in rng.choice(ACTIONS, size=_TURNS * _ACTIONS_PER_TURN, p=probabilities):
            if env.step(str(action)).done:
                break
        found.append(len(env.unlocked))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m visionrl_taskapp.envs.crafter.blind", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--search", action="store_true", help="search the distribution again (some minutes)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")
    arguments = parser.parse_args()
    found = search(arguments.seed) if arguments.search else dict(BLIND_PROBABILITIES)
    rounded = {action: round(share, 3) for action, share in found.items() if share >= 0.0005}
    weights = np.array([rounded.get(action, 0.0) for action in ACTIONS])
    scores = _score(weights / weights.sum(), range(FIRST_TRAINING_SEED // 2, FIRST_TRAINING_SEED // 2 + 300))
    half = 1.96 * scores.std(ddof=1) / len(scores) ** 0.5
    print(json.dumps(rounded, indent=4))
    print(f"{scores.mean():.2f} ± {half:.2f} unique achievements on {len(scores)} seeds")


if __name__ == "__main__":
    main()
