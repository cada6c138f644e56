"""Crafter as a deterministic image environment: one seed and one list of actions give one episode.

`CrafterEnv` keeps the rules, the random stream and the pixels of crafter 1.8.3 and repairs its two leaks:
creatures were picked in the order of memory addresses (`world.py`), and night noise was drawn from the
simulator's generator, so that rendering changed the episode (`render.py`). An env owns its generator and
touches no global random state: hundreds may live in one process, each independent of the others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
from crafter import objects

from visionrl_taskapp.envs.crafter.render import MIN_SIZE, Scene, renderer
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS, ACTIONS, ITEMS, Rules, rules
from visionrl_taskapp.envs.crafter.world import (
    AREA,
    MATERIALS,
    SPRITES,
    VIEW,
    Chunk,
    World,
    WorldState,
    Zombie,
    daylight,
)
from visionrl_taskapp.envs.crafter.worldgen import generate_world

__all__ = [
    "ACHIEVEMENTS",
    "ACTIONS",
    "ITEMS",
    "CrafterEnv",
    "Difficulty",
    "EpisodeOver",
    "LocalView",
    "Rules",
    "Snapshot",
    "StepResult",
    "rules",
    "warm_up",
]

Difficulty = Literal["easy", "normal", "hard"]

# Objects act while they are nearer than this to the player (city-block distance): stock's 2 * max(view).
_ACTIVE_DISTANCE = 18


@dataclass(frozen=True)
class _DifficultyRules:
    zombie_density: float  # factor on how many zombies a chunk of grassland holds
    zombie_damage: tuple[int, int]  # health points lost to a hit: awake, asleep


_DIFFICULTIES: dict[Difficulty, _DifficultyRules] = {
    "easy": _DifficultyRules(zombie_density=0.5, zombie_damage=(1, 3)),
    "normal": _DifficultyRules(zombie_density=1.0, zombie_damage=(2, 7)),
    "hard": _DifficultyRules(zombie_density=1.5, zombie_damage=(3, 9)),
}


class EpisodeOver(RuntimeError):
    """An action was asked for after the player died or the episode reached its length."""


@dataclass(frozen=True)
class StepResult:
    """What one action did.

    `reward` is stock's: a tenth of the change in health, plus 1.0 if anything was unlocked. `unlocked` are
    the achievements reached for the first time in this step, in the order of `ACHIEVEMENTS`. `done` is
    `dead` or the end of the episode's length.
    """

    reward: float
    unlocked: tuple[str, ...]
    dead: bool
    done: bool


@dataclass(frozen=True, eq=False)
class LocalView:
    """The image in words: what a player sees, and nothing that the image does not show.

    `materials` and `objects` are string arrays [9, 7], first index from left to right, second from top to
    bottom, the player at [4, 3]. A material is `""` outside of the map; an object is the name of its sprite
    (`world.SPRITES`, so `"arrow-left"` and `"plant-ripe"` are told apart) or `""`. `facing` is (dx, dy);
    while `sleeping` the image does not show it, and actions have no effect either.
    """

    materials: np.ndarray
    objects: np.ndarray
    facing: tuple[int, int]
    inventory: Mapping[str, int]
    sleeping: bool


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot:
    """An env's exact state at one moment, to be given to `CrafterEnv.restore` any number of times.

    Immutable; may be shared by envs of any image size and pickled to another process.
    """

    difficulty: Difficulty
    world_seed: int
    step_count: int
    world: WorldState


class CrafterEnv:
    """One player in one Crafter world.

    `image_size` is the side of the square image in pixels, 18 or more; 288 makes a cell 32 px. `length` is
    the number of steps after which an episode ends. `difficulty` changes two things, both about zombies,
    and neither the map nor the creatures at the start:

    ========  ===============================  ====================================
    value     zombies a chunk of grass holds   health lost to a hit (awake, asleep)
    ========  ===============================  ====================================
    easy      half (1 by night instead of 3)   1, 3
    normal    stock                            2, 7: stock, bit for bit
    hard      one and a half (5 by night)      3, 9: asleep, one hit kills
    ========  ===============================  ====================================

    Call `reset` or `restore` before anything else.
    """

    def __init__(self, image_size: int = 288, difficulty: Difficulty = "normal", length: int = 10_000) -> None:
        if difficulty not in get_args(Difficulty):
            raise ValueError(f"difficulty is {difficulty!r}; use one of {', '.join(get_args(Difficulty))}")
        if length < 1:
            raise ValueError(f"length is {length}; an episode needs at least 1 step")
        self.image_size = image_size
        self.difficulty = difficulty
        self.length = length
        self._renderer = renderer(image_size)
        self._rules = _DIFFICULTIES[difficulty]
        self._world = World(self._rules.zombie_damage)
        self._player: Any = None
        self._world_seed = 0
        self._step_count = 0

    def reset(self, seed: int) -> None:
        """Start a new episode in the world of `seed` (any integer from 0), which depends on nothing else.

        The world is the one that `crafter.Env(seed=seed)` makes on its first reset.
        """
        seed = operator.index(seed)
        if seed < 0:
            raise ValueError(f"seed is {seed}; use an integer from 0")
        self._world_seed = hash((seed, 1)) % (2**31 - 1)
        self._step_count = 0
        self._world.reset(self._world_seed)
        self._world.daylight = daylight(0)
        self._player = objects.Player(self._world, (AREA[0] // 2, AREA[1] // 2))
        self._world.add(self._player)
        generate_world(self._world, self._player, objects.Cow, Zombie, objects.Skeleton)

    def step(self, action: str | SupportsIndex) -> StepResult:
        """Do one action, given by its name in `ACTIONS` or its index there.

        Raises `ValueError` for an unknown action and `EpisodeOver` once the episode is done; the env is
        unchanged then.
        """
        name = _action_name(action)
        player = self._current_player()
        if self.done:
            cause = "the player is dead" if self.dead else f"its length of {self.length} steps is reached"
            raise EpisodeOver(f"the episode is over after {self._step_count} steps: {cause}; call reset(seed)")
        health = player.health
        before = self.unlocked
        self._step_count += 1
        self._world.daylight = daylight(self._step_count)
        player.action = name
        self._update_objects()
        if self._step_count % 10 == 0:
            for chunk, creatures in self._world.chunks.items():
                self._balance_chunk(chunk, creatures)
        unlocked = tuple(n for n, count in player.achievements.items() if count and n not in before)
        reward = (player.health - health) / 10
        if unlocked:
            reward += 1.0
        return StepResult(reward=float(reward), unlocked=unlocked, dead=self.dead, done=self.done)

    def render(self) -> np.ndarray:
        """The image of the current state, uint8 [image_size, image_size, 3]. Changes nothing."""
        player = self._current_player()
        materials, sprites = self._world.window(player.pos)
        scene = Scene(
            materials=materials,
            sprites=sprites,
            inventory=player.inventory,
            daylight=self._world.daylight,
            sleeping=player.sleeping,
            noise_key=self._world_seed << 32 | self._step_count,
        )
        return self._renderer(scene)

    def local_view(self) -> LocalView:
        """What `render` shows, as names: for the scripted policy, which must not know more than the image shows."""
        player = self._current_player()
        materials, sprites = self._world.window(player.pos)
        return LocalView(
            materials=_MATERIAL_NAMES[materials],
            objects=_SPRITE_NAMES[sprites],
            facing=(int(player.facing[0]), int(player.facing[1])),
            inventory=self.inventory,
            sleeping=player.sleeping,
        )

    def snapshot(self) -> Snapshot:
        """The exact state, random generator included: what follows a restore is what would have followed."""
        self._current_player()
        return Snapshot(self.difficulty, self._world_seed, self._step_count, self._world.save())

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot, of this env or of another one of the same difficulty."""
        if snapshot.difficulty != self.difficulty:
            raise ValueError(
                f"the snapshot was taken at difficulty {snapshot.difficulty!r} and this env plays "
                f"{self.difficulty!r}: restore it in an env of its own difficulty"
            )
        self._world_seed = snapshot.world_seed
        self._step_count = snapshot.step_count
        self._player = self._world.restore(snapshot.world)

    def state_hash(self) -> str:
        """SHA-256 (hex) of what decides the future: step (so daylight), map, player, creatures.

        The generator's state is left out on purpose: paths that lead to the same situation have the same
        hash though the random numbers that follow may differ, which is what grouping by state needs. Also left
        out: how often an achievement was reached beyond the first time, image size, difficulty, length.
        Creatures count in the order in which they act.
        """
        self._current_player()
        return self._world.state_hash(self._step_count)

    @property
    def achievements(self) -> dict[str, int]:
        """How often each of the 22 achievements was reached in this episode."""
        return dict(self._current_player().achievements)

    @property
    def unlocked(self) -> frozenset[str]:
        """The achievements reached at least once in this episode."""
        return frozenset(name for name, count in self._current_player().achievements.items() if count)

    @property
    def inventory(self) -> dict[str, int]:
        """The 16 inventory entries, health, food, drink and energy among them, each from 0 to 9."""
        return dict(self._current_player().inventory)

    @property
    def sleeping(self) -> bool:
        """Whether the player sleeps: actions are then replaced by sleeping until it wakes."""
        return bool(self._current_player().sleeping)

    @property
    def step_count(self) -> int:
        """Steps done in this episode."""
        return self._step_count

    @property
    def daylight(self) -> float:
        """Brightness of the current step in [0, 1]; below 0.5 the image is noisy."""
        return float(self._world.daylight)

    @property
    def dead(self) -> bool:
        """Whether the player's health is used up."""
        return bool(self._current_player().health <= 0)

    @property
    def done(self) -> bool:
        """Whether the episode is over: dead, or `length` steps done."""
        return self.dead or self._step_count >= self.length

    def _current_player(self) -> Any:
        if self._player is None:
            raise RuntimeError("no episode yet: call reset(seed) or restore(snapshot) first")
        return self._player

    def _update_objects(self) -> None:
        # The player is the first object, so its position is that after its own move for all others. Distances
        # are plain integers here: stock's numpy arithmetic on two-element arrays was most of a step.
        player = self._player
        for obj in self._world.objects:
            if obj is player:
                obj.update()
                player_x, player_y = player.pos.tolist()
                continue
            x, y = obj.pos.tolist()
            if abs(x - player_x) + abs(y - player_y) < _ACTIVE_DISTANCE:
                obj.update()

    def _balance_chunk(self, chunk: Chunk, creatures: Mapping[Any, None]) -> None:
        world, player = self._world, self._player
        light = world.daylight
        grass, path = world.count_in(chunk, "grass"), world.count_in(chunk, "path")
        zombies = self._rules.zombie_density * (3.5 - 3 * light)
        self._balance(
            chunk, creatures, Zombie, "grass", 6, 0, 0.3, 0.4,
            0 if grass < 50 else zombies, zombies, lambda pos: Zombie(world, pos, player),
        )  # fmt: skip
        self._balance(
            chunk, creatures, objects.Skeleton, "path", 7, 7, 0.1, 0.1,
            0 if path < 6 else 1, 2, lambda pos: objects.Skeleton(world, pos, player),
        )  # fmt: skip
        self._balance(
            chunk, creatures, objects.Cow, "grass", 5, 5, 0.01, 0.1,
            0 if grass < 30 else 1, 1.5 + light, lambda pos: objects.Cow(world, pos),
        )  # fmt: skip

    def _balance(
        self,
        chunk: Chunk,
        creatures: Mapping[Any, None],
        kind: type,
        material: str,
        spawn_distance: int,
        despawn_distance: int,
        spawn_probability: float,
        despawn_probability: float,
        fewest: float,
        most: float,
        create: Callable[[Any], Any],
    ) -> None:
        """Stock's `_balance_object`, drawing the same random numbers, with masks only where one spawns."""
        world, random = self._world, self._world.random
        present = [creature for creature in creatures if isinstance(creature, kind)]
        if len(present) < int(fewest) and random.uniform() < spawn_probability:
            cells = np.argwhere(world.mask(*chunk, material))
            pos = cells[random.randint(0, len(cells))] + (chunk[0], chunk[2])
            if world[pos][1] is None and self._player.distance(pos) >= spawn_distance:
                world.add(create(pos))
        elif len(present) > int(most) and random.uniform() < despawn_probability:
            creature = present[random.randint(0, len(present))]
            if self._player.distance(creature.pos) >= despawn_distance:
                world.remove(creature)


_MATERIAL_NAMES = np.array(MATERIALS)
_SPRITE_NAMES = np.array(SPRITES)


def _action_name(action: str | SupportsIndex) -> str:
    if isinstance(action, str):
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action!r}; the actions are {', '.join(ACTIONS)}")
        return action
    index = operator.index(action)
    if not 0 <= index < len(ACTIONS):
        raise ValueError(f"action number {index} is not in 0..{len(ACTIONS) - 1}")
    return ACTIONS[index]


def warm_up() -> None:
    """Compile everything that is compiled on first use (seconds; less once numba's cache on disk is filled).

    Call it before the process says that it is ready, so that no episode waits for a compiler.
    """
    env = CrafterEnv(image_size=MIN_SIZE)
    env.reset(0)
    night = Scene(np.zeros(VIEW, np.int64), np.zeros(VIEW, np.int64), {}, 0.0, False, 0)
    # A map that fills the frame's width is contiguous, one with a border is not: numba compiles each on its own.
    for size in (MIN_SIZE, MIN_SIZE + 1):
        renderer(size)(night)
