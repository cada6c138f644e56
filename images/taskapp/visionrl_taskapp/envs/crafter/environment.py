"""Crafter by the protocol of environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionrl.job import EnvSettings, Model
from visionrl_taskapp.envs.crafter import scripted
from visionrl_taskapp.envs.crafter.blind import BLIND_PROBABILITIES
from visionrl_taskapp.envs.crafter.env import CrafterEnv, Difficulty, Snapshot, warm_up
from visionrl_taskapp.envs.crafter.prompt import state_text, system_prompt
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS, ACTIONS
from visionrl_taskapp.envs.protocol import Definition, Description, Score, Step


class Settings(Model):
    """Crafter's part of `rollout.envConfig`."""

    image_size: int = EnvSettings().image_size
    difficulty: Difficulty = "normal"
    length: int = EnvSettings().length


class CrafterEnvironment:
    """One episode of Crafter. An event is an achievement, and each counts 1."""

    def __init__(self, settings: Settings) -> None:
        self.game = CrafterEnv(settings.image_size, settings.difficulty, settings.length)

    def reset(self, seed: int) -> None:
        self.game.reset(seed)

    def step(self, action: str) -> Step:
        done = self.game.step(action)
        return Step(done.reward, len(done.unlocked), done.unlocked, done.dead, done.done and not done.dead)

    def render(self) -> np.ndarray:
        return self.game.render()

    def state_hash(self) -> str:
        return self.game.state_hash()

    def instruction(self) -> str:
        return ""

    def text(self, events: Sequence[str]) -> str:
        return state_text(self.game.local_view(), events)

    def state(self) -> Mapping[str, Any]:
        return {"inventory": self.game.inventory}

    def scores(self) -> Mapping[str, float]:
        return {}

    def snapshot(self) -> Snapshot:
        return self.game.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        self.game.restore(snapshot)

    def close(self) -> None:
        pass


class ScriptedPlayer:
    """The teacher: reads the visible window and the inventory by name."""

    def plan(self, environment: CrafterEnvironment, max_actions: int) -> list[str]:
        return scripted.plan(environment.game.local_view(), max_actions)

    def disturb(self, max_actions: int, rng: np.random.Generator) -> list[str]:
        return scripted.random_plan(max_actions, rng)


def describe(settings: Settings) -> Description:
    return Description(
        title="Crafter from images",
        actions=ACTIONS,
        tool="Play actions in the Crafter world, one after another.",
        prompt=system_prompt,
        scores=(Score("achievements", "unique achievements of the episode", best=len(ACHIEVEMENTS)),),
        events=ACHIEVEMENTS,
        observation={
            "type": "image",
            "format": "PNG, RGB",
            "size": settings.image_size,
            "view": "9 × 7 cells of map above 9 × 2 cells of inventory",
        },
        rubric={
            "outcome": "unique achievements of the episode, out of 22",
            "events": "+1 for each achievement unlocked for the first time",
        },
        idle="noop",
        player=ScriptedPlayer(),
        blind=BLIND_PROBABILITIES,
        terminated="dead",
    )


DEFINITION = Definition(settings=Settings, describe=describe, make=CrafterEnvironment, warm_up=warm_up)
