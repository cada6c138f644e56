"""An environment of one's own: walk to the treasure, which lies somewhere else in every episode.

Everything that VisionRL needs is here: a settings model, a description, an environment, and `DEFINITION`, which the
entry point in pyproject.toml names. docs/environments.md explains each part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from visionrl.job import Model
from visionrl_taskapp.envs.protocol import Definition, Description, PromptStyle, Score, Step

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
FLOOR, WALKER, TREASURE = (60, 60, 60), (80, 160, 255), (255, 200, 0)


class Settings(Model):
    """What a job may say in `rollout.envConfig`. `image_size` and `length` are settings that environments share."""

    cells: Annotated[int, Field(ge=2, le=16)] = 5
    """Side of the field."""
    image_size: int = 160
    length: int = 20
    action_names: list[str] | None = None
    """Only for the tiny model, which has a token for each name."""


class Treasure:
    """One episode. The treasure is worth 1; the episode ends with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._walker = self._treasure = (0, 0)
        self._steps = 0

    def reset(self, seed: int) -> None:
        walker, treasure = np.random.default_rng(seed).choice(self._settings.cells**2, size=2, replace=False)
        self._walker = divmod(int(walker), self._settings.cells)
        self._treasure = divmod(int(treasure), self._settings.cells)
        self._steps = 0

    def step(self, action: str) -> Step:
        last = self._settings.cells - 1
        row, column = (at + by for at, by in zip(self._walker, MOVES[action], strict=True))
        self._walker = (min(max(row, 0), last), min(max(column, 0), last))
        self._steps += 1
        found = self._walker == self._treasure
        return Step(
            reward=float(found),
            score=float(found),
            events=("treasure",) if found else (),
            terminated=found,
            truncated=not found and self._steps >= self._settings.length,
        )

    def render(self) -> np.ndarray:
        size, cells = self._settings.image_size, self._settings.cells
        field = np.full((cells, cells, 3), FLOOR, np.uint8)
        field[self._treasure] = TREASURE
        field[self._walker] = WALKER
        side, frame = size // cells, np.zeros((size, size, 3), np.uint8)
        frame[: side * cells, : side * cells] = field.repeat(side, axis=0).repeat(side, axis=1)
        return frame

    def state_hash(self) -> str:
        return hashlib.sha256(repr((self._walker, self._treasure)).encode()).hexdigest()

    def instruction(self) -> str:
        return ""  # the task is always the same: the system prompt says it

    def text(self, events: Sequence[str]) -> str:
        down, right = (there - here for here, there in zip(self._walker, self._treasure, strict=True))
        return f"The treasure is {down} cells down and {right} cells to the right."

    def state(self) -> Mapping[str, Any]:
        return {"walker": list(self._walker), "treasure": list(self._treasure)}

    def scores(self) -> Mapping[str, float]:
        return {"steps": float(self._steps)}

    # Optional: with these two, the episodes of a group begin from one copy instead of one reset each.

    def snapshot(self) -> Any:
        return self._walker, self._treasure, self._steps

    def restore(self, snapshot: Any) -> None:
        self._walker, self._treasure, self._steps = snapshot

    def close(self) -> None:
        pass


class Guide:
    """Optional: a player that knows the way, as the teacher of a warm start."""

    def plan(self, environment: Treasure, max_actions: int) -> list[str]:
        state = environment.state()
        down, right = (there - here for here, there in zip(state["walker"], state["treasure"], strict=True))
        way = ["down" if down > 0 else "up"] * abs(down) + ["right" if right > 0 else "left"] * abs(right)
        return way[:max_actions]

    def disturb(self, max_actions: int, rng: np.random.Generator) -> list[str]:
        return [str(move) for move in rng.choice(list(MOVES), size=rng.integers(1, max_actions + 1))]


def prompt(style: PromptStyle) -> str:
    return (
        "You are the blue square. Walk to the yellow one.\n\n"
        f"Answer with one call of interact_many with 1 to {style.max_actions} of {', '.join(MOVES)}."
    )


def describe(settings: Settings) -> Description:
    return Description(
        title="Treasure",
        actions=tuple(MOVES),
        tool="Walk, one step after another.",
        prompt=prompt,
        scores=(
            Score("treasure", "whether the treasure was found", best=1.0),
            Score("steps", "steps of the episode", direction="down"),
        ),
        events=("treasure",),
        observation={"type": "image", "format": "PNG, RGB", "size": settings.image_size},
        player=Guide(),
    )


DEFINITION = Definition(settings=Settings, describe=describe, make=Treasure)
