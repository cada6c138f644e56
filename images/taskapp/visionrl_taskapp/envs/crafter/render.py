"""Crafter's image, drawn from composited tiles: the stock pixels in a small part of the time.

Stock Crafter blends 63 cells and every visible object anew for each frame and then lights the whole canvas
in floating point. A view has few distinct cells, so here each (material, sprite) pair is blended once per
image size, by Crafter's own drawing functions, and a frame gathers tiles: lit per tile by day, by one
compiled pass over the pixels at night. Desaturation goes through Pillow itself (or a table that Pillow
filled), so its rounding is kept.

Night noise is the one deliberate difference. Stock draws it from the world's generator inside `render()`,
so looking at the world changes it. Here it is a hash of (`Scene.noise_key`, pixel): the same distribution,
uniform in [32, 127), no state.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from crafter import constants, engine
from numba import njit
from PIL import Image, ImageEnhance

from visionrl_taskapp.envs.crafter.world import MATERIALS, SPRITES, VIEW

GRID = 9
"""Cells a side: the 9×7 view of the map above 9×2 cells of inventory."""

MIN_SIZE = 2 * GRID
"""Below 2 px a cell, Crafter's inventory digits (0.6 of a cell) have no pixel left."""

_COLUMNS, _ROWS = VIEW
_NIGHT_TINT = np.array((0, 16, 64))
_SLEEP_TINT = np.array((0, 0, 16))


@dataclass(frozen=True, eq=False)
class Scene:
    """All that an image shows.

    `materials` and `sprites` are the ids of `World.window`, [9, 7]; `daylight` is in [0, 1]; `noise_key` in
    [0, 2**64) decides the night noise.
    """

    materials: np.ndarray
    sprites: np.ndarray
    inventory: Mapping[str, int]
    daylight: float
    sleeping: bool
    noise_key: int


@functools.cache
def renderer(size: int) -> Renderer:
    """The process's renderer for square images of `size` pixels."""
    return Renderer(size)


class Renderer:
    """Draws scenes at one size. Keeps the tiles it has blended, so share it: see `renderer`."""

    def __init__(self, size: int) -> None:
        if size < MIN_SIZE:
            raise ValueError(f"image_size is {size}; Crafter's view needs at least {MIN_SIZE} pixels a side")
        unit = size // GRID
        border = (size - unit * GRID) // 2
        self._size, self._unit = size, unit
        self._map = slice(border, border + _ROWS * unit), slice(border, border + _COLUMNS * unit)
        self._items = slice(border + _ROWS * unit, border + GRID * unit), self._map[1]
        tiles = (len(MATERIALS) * len(SPRITES), unit, unit, 3)
        self._lit = np.zeros(tiles, np.uint8)
        self._dim = np.zeros(tiles, np.uint8)
        self._known = np.zeros(tiles[0], np.bool_)
        self._item_tiles: dict[tuple[int, int], np.ndarray] = {}
        self._vignette = _vignette(_COLUMNS * unit, _ROWS * unit)

    def __call__(self, scene: Scene) -> np.ndarray:
        """Draw a scene: uint8 [size, size, 3], a new array."""
        cells = (scene.sprites * len(MATERIALS) + scene.materials).T
        distinct, where = np.unique(cells, return_inverse=True)
        for tile in distinct[~self._known[distinct]].tolist():
            self._blend(tile)
        frame = np.zeros((self._size, self._size, 3), np.uint8)
        if scene.daylight < 0.5:
            _draw_night(
                self._lit,
                cells,
                self._vignette,
                np.uint64(scene.noise_key),
                float(scene.daylight),
                _desaturation(),
                scene.sleeping,
                frame[self._map],
            )
        else:
            tiles = self._light_by_day(distinct, scene.daylight, scene.sleeping)
            gathered = tiles[where.reshape(_ROWS, _COLUMNS)]  # [row, column, y, x, 3]
            shape = (_ROWS * self._unit, _COLUMNS * self._unit, 3)
            frame[self._map] = gathered.transpose(0, 2, 1, 3, 4).reshape(shape)
        self._draw_items(scene.inventory, frame[self._items])
        return frame

    def _blend(self, tile: int) -> None:
        sprite, material = divmod(tile, len(MATERIALS))
        size = (self._unit, self._unit)
        canvas = np.full((*size, 3), 127, np.uint8)
        if material:
            engine._draw(canvas, (0, 0), _textures().get(MATERIALS[material], size))
        if sprite:
            engine._draw_alpha(canvas, (0, 0), _textures().get(SPRITES[sprite], size))
        lit = np.ascontiguousarray(canvas.transpose(1, 0, 2))
        self._lit[tile] = lit
        self._dim[tile] = _saturate(lit, 0.4)
        self._known[tile] = True

    def _light_by_day(self, tiles: np.ndarray, daylight: float, sleeping: bool) -> np.ndarray:
        dim = (1 - 0.5) * self._dim[tiles] + 0.5 * _NIGHT_TINT
        colors = daylight * self._lit[tiles] + (1 - daylight) * dim
        if sleeping:
            flat = colors.astype(np.uint8).reshape(-1, self._unit, 3)
            colors = ((1 - 0.5) * _saturate(flat, 0.0) + 0.5 * _SLEEP_TINT).reshape(colors.shape)
        return colors.astype(np.uint8)

    def _draw_items(self, inventory: Mapping[str, int], canvas: np.ndarray) -> None:
        unit = self._unit
        for index, amount in enumerate(inventory.values()):
            if amount < 1:
                continue
            key = index, amount
            if key not in self._item_tiles:
                self._item_tiles[key] = self._item_tile(index, amount)
            y, x = index // _COLUMNS * unit, index % _COLUMNS * unit
            canvas[y : y + unit, x : x + unit] = self._item_tiles[key]

    def _item_tile(self, index: int, amount: int) -> np.ndarray:
        inventory = dict.fromkeys(constants.items, 0)
        inventory[list(inventory)[index]] = amount
        unit = self._unit
        canvas = engine.ItemView(_textures(), [_COLUMNS, GRID - _ROWS])(inventory, np.array((unit, unit)))
        x, y = index % _COLUMNS * unit, index // _COLUMNS * unit
        return np.ascontiguousarray(canvas[x : x + unit, y : y + unit].transpose(1, 0, 2))


@functools.cache
def _textures() -> Any:
    return engine.Textures(constants.root / "assets")


def _saturate(image: np.ndarray, factor: float) -> np.ndarray:
    return np.array(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


@functools.cache
def _desaturation() -> np.ndarray:
    """Pillow's `Image.blend(grey, color, 0.4)` as a table, uint8 [grey, color]."""
    grey, color = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    return np.array(Image.blend(Image.fromarray(grey), Image.fromarray(color), 0.4))


def _vignette(width: int, height: int) -> np.ndarray:
    """How strongly night noise covers each pixel, float64 [height, width]."""
    xs, ys = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return 1 - np.exp(-0.5 * (xs**2 + ys**2) / (0.5**2))


@njit(cache=True, inline="always")
def _mix(z: Any) -> Any:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014): uint64 to uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, inline="always")
def _grey(r: Any, g: Any, b: Any) -> Any:
    """Pillow's conversion of RGB to L."""
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


@njit(cache=True)
def _draw_night(
    tiles: Any, cells: Any, vignette: Any, key: Any, daylight: float, blend: Any, sleeping: bool, out: Any
) -> None:
    """Noise, desaturation, tint and daylight of stock's `LocalView`, one pixel at a time.

    tiles uint8 [tile, unit, unit, 3]; cells int64 [7, 9]; vignette float64 and out uint8 [height, width(, 3)].
    """
    unit = tiles.shape[1]
    height, width = vignette.shape
    amount = 2 * (0.5 - daylight)
    darkness = 1 - daylight
    seed = _mix(key)
    for y in range(height):
        row, v = y // unit, y % unit
        for column in range(width // unit):
            tile = tiles[cells[row, column], v]
            for u in range(unit):
                x = column * unit + u
                counter = np.uint64(y * width + x + 1)
                bits = _mix(seed + counter * np.uint64(0x9E3779B97F4A7C15))
                noise = 32.0 + 95.0 * (np.float64(bits >> np.uint64(11)) * 2.0**-53)
                mask = amount * vignette[y, x]
                clear, cover = 1 - mask, mask * noise
                c0, c1, c2 = tile[u, 0], tile[u, 1], tile[u, 2]
                r, g, b = int(clear * c0 + cover), int(clear * c1 + cover), int(clear * c2 + cover)
                grey = _grey(r, g, b)
                v0 = daylight * c0 + darkness * (0.5 * blend[grey, r] + 0.0)
                v1 = daylight * c1 + darkness * (0.5 * blend[grey, g] + 8.0)
                v2 = daylight * c2 + darkness * (0.5 * blend[grey, b] + 32.0)
                if sleeping:
                    grey = _grey(int(v0), int(v1), int(v2))
                    v0, v1, v2 = 0.5 * grey + 0.0, 0.5 * grey + 0.0, 0.5 * grey + 8.0
                out[y, x, 0] = int(v0)
                out[y, x, 1] = int(v1)
                out[y, x, 2] = int(v2)
