"""Crafter's world generation compiled with numba: same maps, same creatures, same random stream.

`crafter.worldgen.generate_world` asks for up to a dozen noise values and three random numbers a cell, one
Python call each. Here noise is computed as whole fields, one compiled pass decides all materials and a second
one all creatures. What makes the result equal bit for bit:

* the float expressions keep the stock order of operations, and `exp` and `sqrt` stay numpy's;
* the stock code draws a random number only where its noise condition holds, in map order. The passes read
  from a block of numbers drawn ahead and count how many they used; the generator is then wound back and
  moved on by exactly that many.

The compiled code is cached on disk: in a container with a read-only file system set `NUMBA_CACHE_DIR` to a
writable folder, or numba refuses to import this module. A cache that is filled while an image is built serves
other processors only with `NUMBA_CPU_NAME=generic`; the worlds are the same.
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
def _noise_field(perm: Any, grad: Any, xs: Any, ys: Any, z: int, where: Any) -> Any:
    """OpenSimplex noise at xs [W] × ys [H], float64 [W, H]; evaluated only `where`, bool [W, H]."""
    # The one place that calls `noise3`: numba compiles its five hundred lines anew for every call site.
    width, height = where.shape
    field = np.zeros((width, height))
    for x in range(width):
        for y in range(height):
            if where[x, y]:
                field[x, y] = noise3(xs[x], ys[y], z, perm, grad)
    return field


@njit(cache=True)
def _place_materials(
    start: Any,
    water: Any,
    mountain: Any,
    caves: Any,
    tunnels_across: Any,
    tunnels_down: Any,
    coal: Any,
    iron: Any,
    lava: Any,
    sand: Any,
    trees: Any,
    draws: Any,
    materials: Any,
    tunnels: Any,
) -> int:
    """Fill `materials` and `tunnels` [W, H] from the fields [W, H]; return how many of `draws` were used."""
    width, height = materials.shape
    used = 0
    for x in range(width):
        for y in range(height):
            wet, high = water[x, y], mountain[x, y]
            if start[x, y] > 0.5:
                material = _GRASS
            elif high > 0.15:
                material = 0
                if caves[x, y] > 0.15 and high > 0.3:
                    material = _PATH
                elif tunnels_across[x, y] > 0.4 or tunnels_down[x, y] > 0.4:
                    material = _PATH
                    tunnels[x, y] = True
                if material == 0 and coal[x, y] > 0:
                    if draws[used] > 0.85:
                        material = _COAL
                    used += 1
                if material == 0 and iron[x, y] > 0.4:
                    if draws[used] > 0.75:
                        material = _IRON
                    used += 1
                if material == 0 and high > 0.18:
                    if draws[used] > 0.994:
                        material = _DIAMOND
                    used += 1
                if material == 0:
                    material = _LAVA if high > 0.3 and lava[x, y] > 0.35 else _STONE
            elif 0.25 < wet <= 0.35 and sand[x, y] > -0.2:
                material = _SAND
            elif wet > 0.3:
                material = _WATER
            else:
                material = _GRASS
                if trees[x, y] > 0:
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
    x, y = np.arange(width), np.arange(height)

    def noise(xs: np.ndarray, ys: np.ndarray, z: int, where: np.ndarray) -> np.ndarray:
        return _noise_field(perm, grad, xs, ys, z, where)

    everywhere = np.ones((width, height), np.bool_)
    distance = np.sqrt((x[:, None] - player.pos[0]) ** 2 + (y[None, :] - player.pos[1]) ** 2)
    start = 1 / (1 + np.exp(-(4 - distance + 2 * noise(x / 3, y / 3, 8, everywhere))))
    water = noise(x / 15, y / 15, 3, everywhere) + 0.15 * noise(x / 5, y / 5, 3, everywhere)
    water = water + 0.1 - 2 * start
    mountain = noise(x / 15, y / 15, 0, everywhere) + 0.3 * noise(x / 5, y / 5, 0, everywhere)
    mountain = mountain / 1.3 - (4 * start + 0.3 * water)
    rock = (start <= 0.5) & (mountain > 0.15)
    plain = (start <= 0.5) & ~rock

    rewind = random.get_state(legacy=False)
    draws = random.random_sample(width * height * _DRAWS_PER_CELL)
    tunnels = np.zeros((width, height), np.bool_)
    used = _place_materials(
        start,
        water,
        mountain,
        noise(x / 7, y / 7, 6, rock),
        noise(2 * x / 3, y / 5 / 3, 7, rock),
        noise(x / 5 / 3, 2 * y / 3, 7, rock),
        noise(x / 8, y / 8, 1, rock),
        noise(x / 6, y / 6, 2, rock),
        noise(x / 5, y / 5, 6, rock),
        noise(x / 9, y / 9, 4, plain),
        noise(x / 7, y / 7, 5, plain),
        draws,
        world._mat_map,
        tunnels,
    )
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
