"""The reference that the task app's environment is held to: stock Crafter with its two leaks closed.

Everything but chunk order and the source of night noise is the installed package's own code.
"""

from __future__ import annotations

import collections
from typing import Any

import crafter
import numpy as np
from crafter import engine

from visionrl_taskapp.envs.crafter.env import ACTIONS, CrafterEnv


class _InsertionOrdered(dict[Any, bool]):
    def add(self, item: Any) -> None:
        self[item] = True

    def remove(self, item: Any) -> None:
        del self[item]


class _World(engine.World):
    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: dict[Any, _InsertionOrdered] = collections.defaultdict(_InsertionOrdered)


class _LocalView(engine.LocalView):
    key = 0

    def _noise(self, canvas: np.ndarray, amount: float, stddev: float) -> np.ndarray:
        noise = night_noise(self.key, *canvas.shape[:2])[..., None]
        mask = amount * self._vignette(canvas.shape, stddev)[..., None]
        return (1 - mask) * canvas + mask * noise


def night_noise(key: int, width: int, height: int) -> np.ndarray:
    """SplitMix64 of (key, pixel in reading order), uniform in [32, 127): float64 [width, height]."""

    def mix(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    counter = np.arange(1, width * height + 1, dtype=np.uint64)
    bits = mix(mix(np.array([key], np.uint64)) + counter * np.uint64(0x9E3779B97F4A7C15))
    unit = (bits >> np.uint64(11)).astype(np.float64) / 2**53
    return (32 + 95 * unit).reshape(height, width).T


class StockCrafter(crafter.Env):
    """`crafter.Env` after its first reset, with the noise of the same world seed and step."""

    def __init__(self, seed: int, size: int = 64, length: int = 10_000) -> None:
        super().__init__(size=(size, size), seed=seed, length=length)
        self._world.__class__ = _World
        self._local_view.__class__ = _LocalView
        self.reset()

    def render(self, size: int | None = None) -> np.ndarray:
        world_seed = hash((self._seed, 1)) % (2**31 - 1)
        self._local_view.key = (world_seed << 32) + self._step
        if size is not None:  # the package's own `size` argument fails on every value it could take
            self._size = np.array((size, size))
        return super().render()


class Unrendered(StockCrafter):
    """For tests that look at transitions only."""

    def _obs(self) -> None:
        return None


def assert_same_state(env: CrafterEnv, stock: crafter.Env) -> None:
    """Every part of the simulator's state is equal, random generator included."""
    world, expected = env._world, stock._world
    assert world.daylight == expected.daylight
    np.testing.assert_array_equal(world._mat_map, expected._mat_map)
    np.testing.assert_array_equal(world._obj_map, expected._obj_map)
    assert [_fields(o) for o in world._objects] == [_fields(o) for o in expected._objects]
    assert _chunks(world) == _chunks(expected)
    assert_same_random(world.random, expected.random)


def assert_same_random(one: np.random.RandomState, other: np.random.RandomState) -> None:
    mine, others = one.get_state(legacy=False), other.get_state(legacy=False)
    np.testing.assert_array_equal(mine["state"].pop("key"), others["state"].pop("key"))
    assert repr(mine) == repr(others)


def _fields(obj: Any) -> Any:
    if obj is None:
        return None
    skip = {"world", "random", "player"}
    plain = {k: list(v) if isinstance(v, tuple | np.ndarray) else v for k, v in vars(obj).items() if k not in skip}
    return type(obj).__name__, plain


def _chunks(world: engine.World) -> list[Any]:
    slots = {id(obj): slot for slot, obj in enumerate(world._objects)}
    return [(key, [slots[id(obj)] for obj in objs]) for key, objs in world._chunks.items()]


def random_actions(seed: int, steps: int) -> list[str]:
    """Mostly walking and doing, with everything else mixed in."""
    weights = np.array([4.0 if a == "do" or a.startswith("move") else 1.0 for a in ACTIONS])
    return np.random.default_rng(seed).choice(ACTIONS, size=steps, p=weights / weights.sum()).tolist()


def provide(player: Any, step: int) -> None:
    """Keep a player alive (or revive it), equipped and, by turns of 200 steps, tired: a test sees all of the game."""
    player.inventory["health"] = 9
    if step % 7 == 0:
        player.inventory.update(food=9, drink=9, wood=5, stone=5, coal=2, iron=2, sapling=1)
        if step % 200 < 120:
            player.inventory["energy"] = 3
