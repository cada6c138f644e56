"""One episode's environment, one blocking call per turn: step through the actions, then observe.

Nothing here awaits. Callers run these methods in a worker thread, one call at a time per simulation, so that world
generation and rendering do not block the event loop.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionrl.frames import frame_hash
from visionrl.rollout import RolloutRequest
from visionrl_taskapp.envs.png import encode_png
from visionrl_taskapp.envs.protocol import Environment, SnapshotEnvironment
from visionrl_taskapp.envs.registry import Prepared
from visionrl_taskapp.policies.prompt import Frame, sends_frames

GREY = 127
"""Pixel value of the `grey` image control."""

# Gives another seed that is still a valid one: the decoy's world of the `shuffled` image control.
_DECOY_SEED = 0x5DEECE66D
_DECOY_STREAM = 3


@dataclass(frozen=True)
class Observation:
    """The state before a decision. `frame` and `text` are what the prompt carries, if anything."""

    frame: Frame | None
    text: str | None
    state_hash: str
    state: Mapping[str, Any]
    unlocked: tuple[str, ...]
    plan: tuple[str, ...] = ()
    """What the environment's player would do; only where it plays."""


@dataclass(frozen=True)
class TurnOutcome:
    """What a decision's actions did."""

    actions: tuple[str, ...]
    unlocked: tuple[str, ...]
    score: float
    env_reward: float
    done: bool
    terminated: bool
    state: Mapping[str, Any]
    scores: Mapping[str, float]
    """Of the episode so far."""


class Worlds:
    """Start states: the members of a group restore one snapshot, where the environment can. Keeps the recent ones."""

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._snapshots: collections.OrderedDict[tuple[int, str], Any] = collections.OrderedDict()
        # Held while a world is generated: the group's other members wait for it instead of generating it too.
        self._lock = threading.Lock()

    def start(self, environment: Environment, settings: str, seed: int) -> None:
        """Put an environment of these settings at the start of the seed's episode. Thread-safe."""
        if not isinstance(environment, SnapshotEnvironment):
            environment.reset(seed)
            return
        key = seed, settings
        with self._lock:
            snapshot = self._snapshots.get(key)
            if snapshot is None:
                environment.reset(seed)
                self._snapshots[key] = environment.snapshot()
                if len(self._snapshots) > self._capacity:
                    self._snapshots.popitem(last=False)
                return
            self._snapshots.move_to_end(key)
        environment.restore(snapshot)


class Simulation:
    """The episode that a request describes."""

    def __init__(self, request: RolloutRequest, game: Prepared, worlds: Worlds) -> None:
        config = request.policy.config
        self._game, self._seed, self._worlds = game, request.env.seed, worlds
        self._size = request.env.config.image_size
        self._frames = sends_frames(config)
        self._text = not (self._frames and config.image_only_mode)
        self._control = config.image_control
        self._max_actions = config.max_actions
        self._player = game.description.player if request.policy.kind == "scripted" else None
        self._environment: Environment | None = None
        self._decoy: _Decoy | None = None
        self._events: dict[str, None] = {}

    def begin(self) -> Observation:
        """Start the episode."""
        self._environment = self._game.make()
        self._worlds.start(self._environment, self._game.key, self._seed)
        if self._control == "shuffled":
            self._decoy = _Decoy(self._game, self._worlds, self._seed ^ _DECOY_SEED, self._max_actions)
        return self._observe(self._environment)

    def advance(self, actions: Sequence[str], observe: bool) -> tuple[TurnOutcome, Observation | None]:
        """Step through the actions until the episode is done; then observe, if `observe` is set and it is not done."""
        environment = self._environment
        assert environment is not None, "begin() comes first"
        executed: list[str] = []
        unlocked: list[str] = []
        score = reward = 0.0
        done = terminated = False
        for action in actions:
            step = environment.step(action)
            executed.append(action)
            unlocked += [event for event in step.events if event not in self._events]
            self._events |= dict.fromkeys(step.events)
            score += step.score
            reward += step.reward
            done, terminated = step.done, step.terminated
            if done:
                break
        outcome = TurnOutcome(
            actions=tuple(executed),
            unlocked=tuple(unlocked),
            score=score,
            env_reward=reward,
            done=done,
            terminated=terminated,
            state=environment.state(),
            scores=environment.scores(),
        )
        if done or not observe:
            return outcome, None
        if self._decoy:
            self._decoy.turn()
        return outcome, self._observe(environment)

    def close(self) -> None:
        """Give back what the episode holds."""
        for environment in (self._environment, self._decoy.environment if self._decoy else None):
            if environment is not None:
                with contextlib.suppress(Exception):  # the episode is over: nothing is lost with it
                    environment.close()

    def _observe(self, environment: Environment) -> Observation:
        unlocked = tuple(name for name in self._game.description.events if name in self._events)
        instruction = environment.instruction()
        text = environment.text(unlocked) if self._text else ""
        # A text policy that is told nothing still gets a message.
        words = "\n".join(filter(None, (instruction, text))) if instruction or self._text else None
        return Observation(
            frame=self._frame(environment) if self._frames else None,
            text=words,
            state_hash=environment.state_hash(),
            state=environment.state(),
            unlocked=unlocked,
            plan=tuple(self._player.plan(environment, self._max_actions)) if self._player else (),
        )

    def _frame(self, environment: Environment) -> Frame:
        if self._control == "grey":
            pixels = np.full((self._size, self._size, 3), GREY, np.uint8)
        else:
            pixels = (self._decoy.environment if self._decoy else environment).render()
        return Frame(frame_hash(pixels), encode_png(pixels))


class _Decoy:
    """Another episode, whose frames the `shuffled` control shows: played by the player, else by random actions."""

    def __init__(self, game: Prepared, worlds: Worlds, seed: int, max_actions: int) -> None:
        self.environment = game.make()
        self._game, self._max_actions = game, max_actions
        self._rng = np.random.default_rng((seed, _DECOY_STREAM))
        self._done = False
        worlds.start(self.environment, game.key, seed)

    def turn(self) -> None:
        """One turn; nothing where the episode is done."""
        if self._done:
            return
        player, actions = self._game.description.player, self._game.description.actions
        if player:
            plan = player.plan(self.environment, self._max_actions)
        else:
            plan = [str(action) for action in self._rng.choice(actions, size=self._max_actions)]
        for action in plan:
            self._done = self.environment.step(action).done
            if self._done:
                return
