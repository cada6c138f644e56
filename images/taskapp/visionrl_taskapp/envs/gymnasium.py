"""Any Gymnasium environment with pictures and numbered actions: `envName: gymnasium`.

    envConfig: {id: MiniGrid-DoorKey-6x6-v0, kwargs: {tile_size: 16}, imageSize: 96, actionNames: [left, right, …]}

Seeds are given to every reset. A snapshot is a copy of the environment, and offered only where copies were seen to
continue as the original does; elsewhere a group's episodes begin by the same reset.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import hashlib
import importlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from visionrl.job import EnvSettings, Model
from visionrl.tools import TOOL_NAME
from visionrl_taskapp.envs.protocol import (
    Definition,
    Description,
    Environment,
    PackageMissing,
    Player,
    PromptStyle,
    Score,
    SettingsError,
    Step,
)

ActionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+-]{1,64}$")]
MAX_ACTIONS = 256
SELF_TEST_STEPS = 20
# Their ids are registered when they are imported, and they come with the extra `environments`.
_BUNDLED = ("minigrid",)


class Settings(Model):
    """Gymnasium's part of `rollout.envConfig`."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    """Registered id; `module:Id` imports the module that registers it first."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment, as `gymnasium.make` takes them."""
    action_names: Annotated[list[ActionName], Field(min_length=1, max_length=MAX_ACTIONS)] | None = None
    """Names of the actions in order; empty takes the environment's own, else action_0 and so on. The combinations of a
    MultiDiscrete space are listed with the last number running fastest."""
    idle_action: ActionName | None = None
    """The action that an answer without a usable tool call executes; empty executes nothing."""
    instruction_field: str = "mission"
    """Field of the observation with the task in words, part of every prompt; empty sends none."""
    success_key: str | None = None
    """Key of `info` that says that the episode succeeded; empty: the game ended with a reward above 0."""
    score_keys: list[str] = Field(default_factory=list)
    """Keys of `info` whose last values are scores of the episode."""
    hash_fields: list[str] = Field(default_factory=list)
    """Attributes of the environment that decide the future and are seen in neither observation nor frame."""
    image_size: int = EnvSettings().image_size
    length: int = EnvSettings().length


class GymnasiumEnvironment:
    """One environment of `gymnasium.make`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._env = _make(settings)
        self._values = dict(zip(*_named_actions(settings, self._env), strict=True))
        self._observation: Any = None
        self._info: Mapping[str, Any] = {}
        self._steps = 0

    def reset(self, seed: int) -> None:
        # Gymnasium's generator takes 64 bits; some games only 31, and a seed is at most 2⁵³.
        self._observation, self._info = self._env.reset(seed=seed)
        self._steps = 0

    def step(self, action: str) -> Step:
        self._observation, reward, terminated, truncated, self._info = self._env.step(self._values[action])
        self._steps += 1
        value, ended = float(reward), bool(terminated)
        key = self._settings.success_key
        success = bool(self._info.get(key)) if key else ended and value > 0
        cut = not ended and (bool(truncated) or self._steps >= self._settings.length)
        return Step(value, value, ("success",) if success else (), ended, cut)

    def render(self) -> np.ndarray:
        return fitted(self._env.render(), self._settings.image_size)

    def state_hash(self) -> str:
        game = self._env.unwrapped
        digest = hashlib.sha256()
        if callable(getattr(game, "hash", None)) and hasattr(game, "carrying"):
            # MiniGrid's own hash leaves out what the player carries and its task.
            carried = game.carrying.encode() if game.carrying else None
            digest.update(f"{game.hash(size=64)} {carried} {getattr(game, 'mission', '')}".encode())
        else:
            _add(digest, self._observation)
            _add(digest, self._env.render())
        for name in self._settings.hash_fields:
            _add(digest, getattr(game, name))
        return digest.hexdigest()

    def instruction(self) -> str:
        field = self._settings.instruction_field
        told = self._observation.get(field) if field and isinstance(self._observation, dict) else None
        return told if isinstance(told, str) else ""

    def text(self, events: Sequence[str]) -> str:
        return ""

    def state(self) -> Mapping[str, Any]:
        return {}

    def scores(self) -> Mapping[str, float]:
        return {key: float(self._info.get(key, 0.0)) for key in self._settings.score_keys}

    def close(self) -> None:
        self._env.close()

    @property
    def game(self) -> Any:
        """The game without its wrappers."""
        return self._env.unwrapped


class CopiedEnvironment(GymnasiumEnvironment):
    """One whose copies continue as the original does."""

    def snapshot(self) -> Any:
        return copy.deepcopy((self._env, self._observation, self._info, self._steps))

    def restore(self, snapshot: Any) -> None:
        self._env, self._observation, self._info, self._steps = copy.deepcopy(snapshot)


class BabyBot:
    """The bot of BabyAI's levels, which knows the whole grid. It plans on a copy, from the state as it is."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def plan(self, environment: GymnasiumEnvironment, max_actions: int) -> list[str]:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        game = copy.deepcopy(environment.game)
        bot, last = BabyAIBot(game), None
        plan: list[str] = []
        while len(plan) < max_actions:
            last = bot.replan(last)
            plan.append(self._names[int(last)])
            if any(game.step(last)[2:4]):
                break
        return plan

    def disturb(self, max_actions: int, rng: np.random.Generator) -> list[str]:
        return [str(name) for name in rng.choice(self._names, size=rng.integers(1, max_actions + 1))]


def fitted(frame: Any, size: int) -> np.ndarray:
    """A frame on a black square of `size` pixels: each of its pixels becomes a square of the same whole number of
    pixels, so nothing is blurred, and its upper left corner stays where it is, so that cells keep to the patches.

    Raises `ValueError` for what is no uint8 [H, W, 3] of at most that size.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"render() gave {found}; frames are uint8 [H, W, 3]")
    height, width, _ = frame.shape
    factor = size // max(height, width)
    if not factor >= 1:
        raise ValueError(f"frames are {width} × {height} px: imageSize must be at least {max(height, width)}")
    square = np.zeros((size, size, 3), np.uint8)
    square[: factor * height, : factor * width] = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return square


def describe(settings: Settings) -> Description:
    return _examined(settings.model_dump_json())[0]


def make(settings: Settings) -> Environment:
    return _examined(settings.model_dump_json())[1](settings)


@functools.lru_cache(maxsize=64)
def _examined(text: str) -> tuple[Description, type[GymnasiumEnvironment]]:
    """The description, and the class that environments of these settings have. Raises :class:`SettingsError`."""
    settings = Settings.model_validate_json(text)
    environment = GymnasiumEnvironment(settings)
    with contextlib.closing(environment):
        try:
            environment.reset(0)
            environment.render()
        except ValueError as error:
            raise SettingsError("imageSize" if "imageSize" in str(error) else "id", str(error)) from None
        except Exception as error:  # of a game that is not ours
            raise SettingsError("id", f"{settings.id} does not start: {type(error).__name__}: {error}") from None
        names = tuple(environment._values)
        spec = environment._env.spec
        if settings.idle_action not in (None, *names):
            raise SettingsError("idleAction", f"is no action; there are {', '.join(names)}")
        for name in settings.hash_fields:
            if not hasattr(environment.game, name):
                raise SettingsError("hashFields", f"{settings.id} has no attribute {name}")
        deterministic = not spec.nondeterministic and _plays(settings, names) == _plays(settings, names)
        kind = CopiedEnvironment if deterministic and _copies(settings, names) else GymnasiumEnvironment
        player: Player | None = BabyBot(names) if hasattr(environment.game, "instrs") else None
        instructed = bool(environment.instruction())
    description = Description(
        title=settings.id,
        actions=names,
        tool=f"Play actions in {settings.id}, one after another.",
        prompt=functools.partial(_prompt, settings.id, names, instructed),
        scores=(
            Score("return", "sum of the environment's rewards"),
            *(Score(key, f"{key} of the environment's info at the end") for key in settings.score_keys),
        ),
        events=("success",),
        observation={"type": "image", "format": "PNG, RGB", "size": settings.image_size},
        idle=settings.idle_action,
        player=player,
        deterministic=deterministic,
    )
    return description, kind


def _prompt(title: str, names: Sequence[str], instructed: bool, style: PromptStyle) -> str:
    task = "Do what the message says." if instructed else "Reach the highest reward."
    seen = "The image shows the current situation." if style.frames else "The text tells the current situation."
    return (
        f"You play {title}. {task} {seen}\n\nActions: {', '.join(names)}.\n\n"
        f"Answer with one call of {TOOL_NAME} with 1 to {style.max_actions} actions; they are done in order."
    )


def _make(settings: Settings) -> Any:
    # pygame, which many games import, greets on the standard output, where a command's JSON goes.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import gymnasium
    except ImportError:
        raise PackageMissing("", "the package gymnasium is missing: install visionrl[environments]") from None
    for name in _BUNDLED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    try:
        return gymnasium.make(settings.id, render_mode="rgb_array", **settings.kwargs)
    except ImportError as error:
        raise SettingsError("id", f"{error}; add the package to the task app's image") from None
    except gymnasium.error.UnregisteredEnv as error:
        raise SettingsError(
            "id",
            f"{error} If another package registers it, write package:{settings.id}, and the package is imported first",
        ) from None
    except TypeError as error:
        raise SettingsError("kwargs", f"{settings.id} does not take them: {error}") from None
    except Exception as error:  # of a game that is not ours
        raise SettingsError("id", f"{settings.id} cannot be made: {type(error).__name__}: {error}") from None


def _named_actions(settings: Settings, env: Any) -> tuple[list[str], list[Any]]:
    """Names and values of the actions. Raises :class:`SettingsError`."""
    from gymnasium import spaces

    space = env.action_space
    if isinstance(space, spaces.Discrete):
        values: list[Any] = [int(space.start) + number for number in range(int(space.n))]
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        if int(np.prod(space.nvec)) > MAX_ACTIONS:
            raise SettingsError(
                "id", f"{settings.id} has {np.prod(space.nvec)} combinations of actions; the most is 256"
            )
        ranges = [range(int(first), int(first + count)) for first, count in zip(space.start, space.nvec, strict=True)]
        values = [np.array(each, space.dtype) for each in itertools.product(*ranges)]
    else:
        raise SettingsError(
            "id",
            f"{settings.id} has {type(space).__name__} actions; a tool call takes numbered ones (Discrete, "
            "MultiDiscrete): wrap the environment in one that has them (docs/environments.md)",
        )
    names = (
        settings.action_names or _own_names(env.unwrapped, len(values)) or [f"action_{i}" for i in range(len(values))]
    )
    if len(names) != len(values):
        raise SettingsError("actionNames", f"{len(names)} names; {settings.id} has {len(values)} actions")
    if len(set(names)) != len(names):
        raise SettingsError("actionNames", "a name is given twice")
    return names, values


def _own_names(game: Any, count: int) -> list[str] | None:
    """The names that a game gives its actions: MiniGrid by an enumeration, Atari by a method."""
    actions = getattr(game, "actions", None)
    if isinstance(actions, type) and issubclass(actions, enum.IntEnum):
        found = [action.name for action in actions]
    elif callable(getattr(game, "get_action_meanings", None)):
        found = [str(name).lower() for name in game.get_action_meanings()]
    else:
        return None
    return found if len(found) == count else None


# --- what a game promises is tried


def _plays(settings: Settings, names: Sequence[str]) -> list[str]:
    """Frames and states of some steps of a fresh environment."""
    environment = GymnasiumEnvironment(settings)
    with contextlib.closing(environment):
        environment.reset(1)
        return _continued(environment, names)


def _copies(settings: Settings, names: Sequence[str]) -> bool:
    """Whether copies made in the middle of an episode continue as the original does, also when used twice."""
    environment, other = CopiedEnvironment(settings), CopiedEnvironment(settings)
    try:
        environment.reset(2)
        environment.step(names[0])
        kept = environment.snapshot()
        expected = _continued(environment, names)
        for _ in range(2):
            other.restore(kept)
            if _continued(other, names) != expected:
                return False
        return True
    except Exception:  # a game that cannot be copied, or whose copy does not run
        return False
    finally:
        environment.close()


def _continued(environment: GymnasiumEnvironment, names: Sequence[str]) -> list[str]:
    rng, seen = np.random.default_rng(0), []
    for _ in range(SELF_TEST_STEPS):
        seen.append(environment.state_hash() + hashlib.sha256(environment.render().tobytes()).hexdigest())
        if environment.step(str(rng.choice(names))).done:
            break
    return seen


def _add(digest: Any, value: Any) -> None:
    """Put a value into a digest: equal values, equal digests, in any process."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    else:
        digest.update(f"{type(value).__name__}:{value!r};".encode())


DEFINITION = Definition(settings=Settings, describe=describe, make=make)
