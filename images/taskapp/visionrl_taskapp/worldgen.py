"""Crafter's world generation compiled with numba: same maps, same creatures, same random stream.

`crafter.worldgen.generate_world` asks for up to seven noise values and three random numbers a cell, one
Python call each. Here one compiled pass decides all materials and a second one all creatures. What makes
the result equal bit for bit:

* the float expressions keep the stock order of operations, and `exp` and `sqrt` stay numpy's;
* the stock code draws a random number only where its noise condition holds, in map order. The passes read
  from a block of numbers drawn ahead and count how many they used; the generator is then wound back and
  moved on by exactly that many.

The compiled code is cached on disk: in a container with a read-only file system set `NUMBA_CACHE_DIR` to a
writable folder, or numba refuses to import this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from crafter import constants
from numba import njit
from opensimplex.internals import _init as simplex_permutation
from opensimplex.internals import _noise3 as noise3

# Material ids are the stock World's: position in `data.yaml`, counted from 1.
_ID = {name: index for index, name in enumerate(constants.materials, start=1)}
_GRASS, _SAND, _WATER, _STONE, _PATH = (_ID[n] for n in ("grass", "sand", "water", "stone", "path"))
_TREE, _LAVA, _COAL, _IRON, _DIAMOND = (_ID[n] for n in ("tree", "lava", "coal", "iron", "diamond"))
_COW, _ZOMBIE, _SKELETON = range(3)
# A cell draws at most three numbers for its material and three for its creature.
_DRAWS_PER_CELL = 6


@njit(cache=True)
def _terrain_noise(perm: Any, grad: Any, width: int, height: int) -> Any:
    """The three noise fields that every cell needs: around the start, of water, of mountains; each [W, H]."""
    start = np.empty((width, height))
    water = np.empty((width, height))
    mountain = np.empty((width, height))
    for x in range(width):
        for y in range(height):
            start[x, y] = noise3(x / 3, y / 3, 8, perm, grad)
            water[x, y] = noise3(x / 15, y / 15, 3, perm, grad) + 0.15 * noise3(x / 5, y / 5, 3, perm, grad)
            mountain[x, y] = (noise3(x / 15, y / 15, 0, perm, grad) + 0.3 * noise3(x / 5, y / 5, 0, perm, grad)) / 1.3
    return start, water, mountain


@njit(cache=True)
def _place_materials(
    perm: Any, grad: Any, start: Any, water: Any, mountain: Any, draws: Any, materials: Any, tunnels: Any
) -> int:
    """Fill `materials` and `tunnels` [W, H]; return how many of `draws` were used."""
    width, height = materials.shape
    used = 0
    for x in range(width):
        for y in range(height):
            wet, high = water[x, y], mountain[x, y]
            if start[x, y] > 0.5:
                material = _GRASS
            elif high > 0.15:
                material = 0
                if noise3(x / 7, y / 7, 6, perm, grad) > 0.15 and high > 0.3:
                    material = _PATH
                elif (
                    noise3(2 * x / 3, y / 5 / 3, 7, perm, grad) > 0.4
                    or noise3(x / 5 / 3, 2 * y / 3, 7, perm, grad) > 0.4
                ):
                    material = _PATH
                    tunnels[x, y] = True
                if material == 0 and noise3(x / 8, y / 8, 1, perm, grad) > 0:
                    if draws[used] > 0.85:
                        material = _COAL
                    used += 1
                if material == 0 and noise3(x / 6, y / 6, 2, perm, grad) > 0.4:
                    if draws[used] > 0.75:
                        material = _IRON
                    used += 1
                if material == 0 and high > 0.18:
                    if draws[used] > 0.994:
                        material = _DIAMOND
                    used += 1
                if material == 0:
                    molten = high > 0.3 and noise3(x / 5, y / 5, 6, perm, grad) > 0.35
                    material = _LAVA if molten else _STONE
            elif 0.25 < wet <= 0.35 and noise3(x / 9, y / 9, 4, perm, grad) > -0.2:
                material = _SAND
            elif wet > 0.3:
                material = _WATER
            else:
                material = _GRASS
                if noise3(x / 7, y / 7, 5, perm, grad) > 0:
                    if draws[used] > 0.8:
                        material = _TREE
                    used += 1
            materials[x, y] = material
    return used


@njit(cache=True)
def _place_creatures(distance: Any, materials: Any, tunnels: Any, draws: Any, used: int, out: Any) -> Any:
    """Write rows (x, y, kind) to `out` [W·H, 3]; return (draws used in all, creatures written)."""
    width, height = materials.shape
    count = 0
    for x in range(width):
        for y in range(height):
            material = materials[x, y]
            if material not in (_GRASS, _SAND, _PATH):
                continue
            kind = -1
            if distance[x, y] > 3 and material == _GRASS:
                if draws[used] > 0.985:
                    kind = _COW
                used += 1
            if kind < 0 and distance[x, y] > 10:
                if draws[used] > 0.993:
                    kind = _ZOMBIE
                used += 1
            if kind < 0 and material == _PATH and tunnels[x, y]:
                if draws[used] > 0.95:
                    kind = _SKELETON
                used += 1
            if kind >= 0:
                out[count, 0], out[count, 1], out[count, 2] = x, y, kind
                count += 1
    return used, count


def generate_world(
    world: Any, player: Any, cow: Callable[..., Any], zombie: Callable[..., Any], skeleton: Callable[..., Any]
) -> None:
    """Fill a fresh `crafter.engine.World` around `player`, as `crafter.worldgen.generate_world` does.

    `cow(world, pos)`, `zombie(world, pos, player)` and `skeleton(world, pos, player)` make the creatures.
    """
    random = world.random
    perm, grad = simplex_permutation(random.randint(0, 2**31 - 1))
    width, height = world.area
    near, wet, high = _terrain_noise(perm, grad, width, height)

    x, y = np.meshgrid(np.arange(width), np.arange(height), indexing="ij")
    distance = np.sqrt((x - player.pos[0]) ** 2 + (y - player.pos[1]) ** 2)
    start = 1 / (1 + np.exp(-(4 - distance + 2 * near)))
    water = wet + 0.1 - 2 * start
    mountain = high - (4 * start + 0.3 * water)

    rewind = random.get_state(legacy=False)
    draws = random.random_sample(width * height * _DRAWS_PER_CELL)
    tunnels = np.zeros((width, height), np.bool_)
    used = _place_materials(perm, grad, start, water, mountain, draws, world._mat_map, tunnels)
    creatures = np.empty((width * height, 3), np.int64)
    used, count = _place_creatures(distance, world._mat_map, tunnels, draws, used, creatures)
    random.set_state(rewind)
    random.random_sample(used)

    for cx, cy, kind in creatures[:count].tolist():
        if kind == _COW:
            world.add(cow(world, (cx, cy)))
        elif kind == _ZOMBIE:
            world.add(zombie(world, (cx, cy), player))
        else:
            world.add(skeleton(world, (cx, cy), player))
