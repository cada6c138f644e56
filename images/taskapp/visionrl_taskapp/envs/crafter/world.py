"""A deterministic `crafter.engine.World` that can be read as the image shows it, saved, restored and hashed.

Stock Crafter keeps each chunk's creatures in a `set` hashed by address, and picks one by its index in that
order: two runs of one seed part within a hundred steps, and no `PYTHONHASHSEED` helps. `World` keeps them in
insertion order and otherwise follows the stock class bit for bit.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from crafter import constants, engine, objects

AREA = (64, 64)
CHUNK = (12, 12)
VIEW = (9, 7)
"""Columns and rows of the map that the image shows, the player in the middle."""

MATERIALS: tuple[str, ...] = ("", *constants.materials)
"""Material names by the id that the map holds; id 0 means outside of the map."""

SPRITES: tuple[str, ...] = (
    "",
    "player-left",
    "player-right",
    "player-up",
    "player-down",
    "player-sleep",
    "cow",
    "zombie",
    "skeleton",
    "arrow-left",
    "arrow-right",
    "arrow-up",
    "arrow-down",
    "plant",
    "plant-ripe",
)
"""Names of the textures that objects are drawn with; id 0 means no object."""

Chunk: TypeAlias = tuple[int, int, int, int]
_SPRITE_ID = {name: index for index, name in enumerate(SPRITES)}
# What ties an object to its world: set anew on restore, and no state of its own.
_LINKS = frozenset({"world", "random", "player"})
# The last action is overwritten before it is read, and only whether an achievement is unlocked matters.
_NOT_HASHED = _LINKS | {"action", "achievements", "removed"}


def daylight(step: int) -> float:
    """Brightness in [0, 1] at a step, as stock computes it: a cycle of 300 steps, night below 0.5."""
    progress = (step / 300) % 1 + 0.3
    return 1 - np.abs(np.cos(np.pi * progress)) ** 3


class Zombie(objects.Zombie):
    """The stock zombie, dealing the damage that its world's difficulty says."""

    def update(self) -> None:
        health = self.player.health
        super().update()
        if self.player.health < health:
            self.player.health = health - self.world.zombie_damage[self.player.sleeping]


class _OrderedSet(dict[Any, None]):
    """The set operations that Crafter uses on a chunk, in insertion order."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


@dataclass(frozen=True, eq=False, repr=False)
class WorldState:
    """A saved world. Nothing writes to it, so any number of worlds may be restored from it."""

    random: Mapping[str, Any]
    daylight: float
    materials: np.ndarray
    object_slots: np.ndarray
    slots: int
    objects: tuple[tuple[int, type, Mapping[str, Any]], ...]
    chunks: tuple[tuple[Chunk, tuple[int, ...]], ...]


class World(engine.World):
    """The stock world with ordered chunks; `zombie_damage` is (awake, asleep) in health points."""

    def __init__(self, zombie_damage: tuple[int, int]) -> None:
        self.zombie_damage = zombie_damage
        super().__init__(AREA, constants.materials, CHUNK)

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: dict[Chunk, _OrderedSet] = collections.defaultdict(_OrderedSet)
        self._counts: dict[tuple[Chunk, str], int] = {}

    def __getitem__(self, pos: Any) -> tuple[str | None, Any]:
        x, y = pos
        if not (0 <= x < AREA[0] and 0 <= y < AREA[1]):
            return None, None
        return MATERIALS[self._mat_map.item(x, y)], self._objects[self._obj_map.item(x, y)]

    def __setitem__(self, pos: Any, material: str) -> None:
        super().__setitem__(pos, material)
        self._counts.clear()

    def count_in(self, chunk: Chunk, material: str) -> int:
        """How many cells of a chunk are of a material."""
        key = chunk, material
        if key not in self._counts:
            self._counts[key] = int(np.count_nonzero(self.mask(*chunk, material)))
        return self._counts[key]

    def window(self, center: Any) -> tuple[np.ndarray, np.ndarray]:
        """What the image shows around a cell: ids into `MATERIALS` and into `SPRITES`, each int64 [9, 7]."""
        (columns, rows), (width, height) = VIEW, AREA
        x0, y0 = int(center[0]) - columns // 2, int(center[1]) - rows // 2
        xs = slice(max(x0, 0), min(x0 + columns, width))
        ys = slice(max(y0, 0), min(y0 + rows, height))
        inside = slice(xs.start - x0, xs.stop - x0), slice(ys.start - y0, ys.stop - y0)
        materials = np.zeros(VIEW, np.int64)
        sprites = np.zeros(VIEW, np.int64)
        materials[inside] = self._mat_map[xs, ys]
        slots = self._obj_map[xs, ys]
        visible = sprites[inside]
        for x, y in np.argwhere(slots).tolist():
            visible[x, y] = _SPRITE_ID[self._objects[slots[x, y]].texture]
        return materials, sprites

    def save(self) -> WorldState:
        """The exact state, random generator included."""
        slot_of = {id(obj): slot for slot, obj in enumerate(self._objects) if obj}
        return WorldState(
            random=self.random.get_state(legacy=False),
            daylight=self.daylight,
            materials=self._mat_map.copy(),
            object_slots=self._obj_map.copy(),
            slots=len(self._objects),
            objects=tuple(
                (slot, type(obj), _copy_fields(vars(obj), skip=_LINKS)) for slot, obj in enumerate(self._objects) if obj
            ),
            chunks=tuple((key, tuple(slot_of[id(o)] for o in objs)) for key, objs in self._chunks.items()),
        )

    def restore(self, state: WorldState) -> Any:
        """Become the saved world; returns its player."""
        self.random.set_state(state.random)
        self.daylight = state.daylight
        self._mat_map = state.materials.copy()
        self._obj_map = state.object_slots.copy()
        self._counts.clear()
        self._objects = [None] * state.slots
        player = None
        for slot, kind, fields in state.objects:
            obj: Any = object.__new__(kind)
            self._objects[slot] = obj
            vars(obj).update(_copy_fields(fields), world=self, random=self.random)
            if kind is objects.Player:
                player = obj
            elif issubclass(kind, objects.Zombie | objects.Skeleton):
                obj.player = player  # the player is the first object that a world gets
        self._chunks = collections.defaultdict(_OrderedSet)
        for key, slots in state.chunks:
            self._chunks[key] = _OrderedSet((self._objects[slot], None) for slot in slots)
        return player

    def state_hash(self, step: int) -> str:
        """SHA-256 (hex) of the step, the map and the living objects in the order in which they act."""
        digest = hashlib.sha256(f"crafter {step} ".encode())
        digest.update(self._mat_map.tobytes())
        for obj in self.objects:
            fields = sorted((k, _canonical(v)) for k, v in vars(obj).items() if k not in _NOT_HASHED)
            digest.update(repr((type(obj).__name__, fields)).encode())
            if isinstance(obj, objects.Player):
                digest.update(repr(sorted(n for n, count in obj.achievements.items() if count)).encode())
        return digest.hexdigest()


def _copy_fields(fields: Mapping[str, Any], skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    # Dictionaries (inventory, achievements) are changed in place; positions and directions are replaced.
    return {k: v.copy() if type(v) is dict else v for k, v in fields.items() if k not in skip}


def _canonical(value: Any) -> Any:
    """One form for equal values: stock mixes ints, floats, tuples and arrays in the same field."""
    if isinstance(value, dict):
        return sorted((k, float(v)) for k, v in value.items())
    if isinstance(value, tuple | np.ndarray):
        return [float(v) for v in value]
    return float(value)
