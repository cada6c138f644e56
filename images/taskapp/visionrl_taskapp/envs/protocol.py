"""What an environment is to the rest of the task app: a `Definition` that makes `Environment`s, and a `Description`.

Episode loop, policies, traces and server know no game; they know these types. An environment of a user's own is a
`Definition` that the entry point `visionrl.environments` names (`docs/environments.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from pydantic import BaseModel

from visionrl.seeds import MAX_SEED


@dataclass(frozen=True)
class Step:
    """What one action did."""

    reward: float
    """The environment's own reward."""
    score: float
    """What the step added to the episode's return: training and evaluation count this."""
    events: tuple[str, ...] = ()
    """Events of the description that happened. An event counts once in an episode, whenever it comes again."""
    terminated: bool = False
    """Whether the game ended the episode."""
    truncated: bool = False
    """Whether a limit of time ended it."""

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class Environment(Protocol):
    """One episode at a time, used by one thread at a time. `reset` (or `restore`) comes first."""

    def reset(self, seed: int) -> None:
        """Start the episode of a seed, which depends on nothing else."""
        ...

    def step(self, action: str) -> Step:
        """Do one of the description's actions. Never called once the episode is done."""
        ...

    def render(self) -> np.ndarray:
        """The image of the current state, uint8 [image_size, image_size, 3]. Changes nothing."""
        ...

    def state_hash(self) -> str:
        """Equal for two states whose futures are the same but for chance; 64 hexadecimal digits, say."""
        ...

    def instruction(self) -> str:
        """The episode's task in words, where it changes with the seed: part of every prompt. Else empty."""
        ...

    def text(self, events: Sequence[str]) -> str:
        """The state in words, for prompts that have more than the frame; `events` happened so far."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What trajectories and traces tell of the state, as JSON values: an inventory, for example."""
        ...

    def scores(self) -> Mapping[str, float]:
        """The description's scores beyond the return, of the episode so far."""
        ...

    def close(self) -> None:
        """Give back what the episode holds; nothing is called afterwards. A remote environment may still be in a call,
        which it ends."""
        ...


@runtime_checkable
class SnapshotEnvironment(Environment, Protocol):
    """An environment that can be put back to an earlier state."""

    def snapshot(self) -> Any:
        """The exact state, random generator included. Immutable: restored any number of times, in any environment of
        the same settings."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Continue from there: what follows is what would have followed."""
        ...


class Player(Protocol):
    """A player that reads the environment's state, which no model gets: a teacher, or a baseline."""

    def plan(self, environment: Any, max_actions: int) -> list[str]:
        """The next 1 to `max_actions` actions."""
        ...

    def disturb(self, max_actions: int, rng: np.random.Generator) -> list[str]:
        """Actions in place of a plan, that lead where the player would not go."""
        ...


@dataclass(frozen=True)
class Score:
    """A number that an episode ends with."""

    name: str
    text: str
    direction: Literal["up", "down"] = "up"
    best: float | None = None
    """The largest return, where there is one: the outcome score is the share of it."""


@dataclass(frozen=True)
class PromptStyle:
    """What the built-in system prompt depends on."""

    frames: bool
    """Whether prompts carry frames."""
    max_actions: int
    segment_turns: int


@dataclass(frozen=True)
class Description:
    """An environment with its settings, in words and names."""

    title: str
    actions: tuple[str, ...]
    tool: str
    """What the tool does, for its schema."""
    prompt: Callable[[PromptStyle], str]
    """The built-in system prompt."""
    scores: tuple[Score, ...]
    """The first is the episode's return."""
    events: tuple[str, ...] = ()
    observation: Mapping[str, Any] = field(default_factory=dict)
    """The frames, for `/task_info`."""
    rubric: Mapping[str, str] = field(default_factory=dict)
    """What counts, for `/task_info`; empty names return and events."""
    idle: str | None = None
    """The action that an answer without a usable tool call executes; None executes nothing."""
    player: Player | None = None
    blind: Mapping[str, float] | None = None
    """Probability of each action in the best play that ignores the observation, where it is known."""
    terminated: str = "terminated"
    """How trajectories name an episode that the game ended."""
    seeds: tuple[int, int] = (0, MAX_SEED)
    deterministic: bool = True
    """Whether the same seed and the same actions give the same frames and states in any process."""


S = TypeVar("S", bound=BaseModel)


class SettingsError(ValueError):
    """Settings that an environment cannot be made with: the field, by its name in the file, and what to write."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field, self.message = field, message


class PackageMissing(SettingsError):
    """What this environment needs is not installed here; another image may have it."""


@dataclass(frozen=True)
class Definition(Generic[S]):
    """How an environment is configured, described and made. Its name is that of the entry point."""

    settings: type[S]
    """Of `rollout.envConfig`. `image_size`, `length` and `difficulty` are passed where it has them."""
    describe: Callable[[S], Description]
    """Raises :class:`SettingsError`."""
    make: Callable[[S], Environment]
    """Several may live in one process, each independent of the others."""
    warm_up: Callable[[], None] = lambda: None
    """Do what takes long the first time, before the server says that it is ready."""
    remote: bool = False
    """Whether its calls wait for another machine rather than compute: then many more of them run at once."""
