"""Crafter's trajectories as they were recorded once: no later change of the code may move a pixel, a reward or a state.

`python -m tests.unit.taskapp.test_recorded_trajectories` records them anew; that is owed to a change of the game only.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from visionrl.frames import frame_hash
from visionrl_taskapp.envs.crafter.env import ACTIONS, CrafterEnv

RECORDING = Path(__file__).parent / "testdata" / "trajectories.json"
EPISODES = ((0, 288, "normal"), (7, 256, "normal"), (101, 64, "easy"), (2024, 96, "hard"))
STEPS = 400


def recorded(seed: int, size: int, difficulty: Any) -> dict[str, Any]:
    """An episode of seeded random actions: one digest over all frames and states, and every reward."""
    env, chance = CrafterEnv(size, difficulty, 10_000), random.Random(seed)
    env.reset(seed)
    digest = hashlib.sha256(frame_hash(env.render()).encode())
    actions, rewards = [], {}
    while not env.done and env.step_count < STEPS:
        action = chance.choice(ACTIONS)
        result = env.step(action)
        actions.append(action)
        digest.update(f"{frame_hash(env.render())} {env.state_hash()}".encode())
        if result.reward:
            rewards[str(env.step_count)] = result.reward
    return {
        "seed": seed,
        "imageSize": size,
        "difficulty": difficulty,
        "actions": hashlib.sha256(" ".join(actions).encode()).hexdigest(),
        "steps": env.step_count,
        "framesAndStates": digest.hexdigest(),
        "lastFrame": frame_hash(env.render()),
        "rewards": rewards,
        "unlocked": sorted(env.unlocked),
    }


@pytest.mark.parametrize("expected", json.loads(RECORDING.read_text()), ids=lambda each: f"seed-{each['seed']}")
def test_an_episode_is_what_it_was_when_it_was_recorded(expected: dict[str, Any]) -> None:
    assert recorded(expected["seed"], expected["imageSize"], expected["difficulty"]) == expected


if __name__ == "__main__":
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_text(json.dumps([recorded(*episode) for episode in EPISODES], indent=1) + "\n")
