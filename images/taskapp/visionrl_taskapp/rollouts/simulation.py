"""One episode's simulator, one blocking call per turn: step through the actions, then observe.

Nothing here awaits. Callers run these methods in a worker thread, one call at a time per simulation, so that world
generation and rendering do not block the event loop.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionrl.frames import frame_hash
from visionrl.job import EnvSettings
from visionrl.rollout import RolloutRequest
from visionrl_taskapp.envs.crafter import scripted
from visionrl_taskapp.envs.crafter.env import CrafterEnv, LocalView, Snapshot
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS
from visionrl_taskapp.envs.png import encode_png
from visionrl_taskapp.policies.prompt import Frame, sends_frames, state_text

GREY = 127
"""Pixel value of the `grey` image control."""

# Gives another seed that is still a valid one: the decoy's world of the `shuffled` image control.
_DECOY_SEED = 0x5DEECE66D


@dataclass(frozen=True)
class Observation:
    """The state before a decision. `frame` and `text` are what the prompt carries, if anything."""

    view: LocalView
    frame: Frame | None
    text: str | None
    state_hash: str
    unlocked: tuple[str, ...]


@dataclass(frozen=True)
class TurnOutcome:
    """What a decision's actions did."""

    actions: tuple[str, ...]
    unlocked: tuple[str, ...]
    env_reward: float
    done: bool
    dead: bool
    inventory: dict[str, int]


class Worlds:
    """Start states by seed: the members of a group restore one snapshot. Keeps the most recent ones."""

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._snapshots: collections.OrderedDict[tuple[int, str], Snapshot] = collections.OrderedDict()
        # Held while a world is generated: the group's other members wait for it instead of generating it too.
        self._lock = threading.Lock()

    def start(self, env: CrafterEnv, seed: int) -> None:
        """Put `env` at the start of the seed's episode. Thread-safe."""
        key = seed, env.difficulty
        with self._lock:
            snapshot = self._snapshots.get(key)
            if snapshot is None:
                env.reset(seed)
                self._snapshots[key] = env.snapshot()
                if len(self._snapshots) > self._capacity:
                    self._snapshots.popitem(last=False)
                return
            self._snapshots.move_to_end(key)
        env.restore(snapshot)


class Simulation:
    """The episode that a request describes."""

    def __init__(self, request: RolloutRequest, worlds: Worlds) -> None:
        config = request.policy.config
        self._seed, self._worlds = request.env.seed, worlds
        self._env = _make_env(request.env.config)
        self._frames = sends_frames(config)
        self._text = not (self._frames and config.image_only_mode)
        self._control = config.image_control
        self._max_actions = config.max_actions
        self._decoy = _make_env(request.env.config) if self._control == "shuffled" else None

    def begin(self) -> Observation:
        """Start the episode."""
        self._worlds.start(self._env, self._seed)
        if self._decoy:
            self._worlds.start(self._decoy, self._seed ^ _DECOY_SEED)
        return self._observe()

    def advance(self, actions: Sequence[str], observe: bool) -> tuple[TurnOutcome, Observation | None]:
        """Step through the actions until the episode is done; then observe, if `observe` is set and it is not done."""
        executed: list[str] = []
        unlocked: list[str] = []
        reward = 0.0
        for action in actions:
            result = self._env.step(action)
            executed.append(action)
            unlocked.extend(result.unlocked)
            reward += result.reward
            if result.done:
                break
        outcome = TurnOutcome(
            tuple(executed), tuple(unlocked), reward, self._env.done, self._env.dead, self._env.inventory
        )  # fmt: skip
        if outcome.done or not observe:
            return outcome, None
        if self._decoy:
            _scripted_turn(self._decoy, self._max_actions)
        return outcome, self._observe()

    def _observe(self) -> Observation:
        view, reached = self._env.local_view(), self._env.unlocked
        unlocked = tuple(name for name in ACHIEVEMENTS if name in reached)
        return Observation(
            view=view,
            frame=self._frame() if self._frames else None,
            text=state_text(view, unlocked) if self._text else None,
            state_hash=self._env.state_hash(),
            unlocked=unlocked,
        )

    def _frame(self) -> Frame:
        if self._control == "grey":
            pixels = np.full((self._env.image_size, self._env.image_size, 3), GREY, np.uint8)
        else:
            pixels = (self._decoy or self._env).render()
        return Frame(frame_hash(pixels), encode_png(pixels))


def _make_env(settings: EnvSettings) -> CrafterEnv:
    return CrafterEnv(settings.image_size, settings.difficulty, settings.length)


def _scripted_turn(env: CrafterEnv, max_actions: int) -> None:
    """One turn of the scripted policy; nothing where the episode is done."""
    for action in scripted.plan(env.local_view(), max_actions):
        if env.done:
            return
        env.step(action)
