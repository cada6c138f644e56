"""Frames equal stock Crafter's pixel for pixel, whatever the light, the size and the place."""

import dataclasses

import numpy as np
import pytest
from crafter import objects
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.unit.taskapp.stock_crafter import StockCrafter, Unrendered, provide, random_actions
from visionrl_taskapp.envs.crafter.env import CrafterEnv
from visionrl_taskapp.envs.crafter.render import MIN_SIZE, Scene, renderer
from visionrl_taskapp.envs.crafter.world import AREA, MATERIALS, SPRITES, VIEW, Zombie

SIZES = [18, 19, 27, 64, 100, 144, 255, 288, 512]


def assert_same_frames(seed: int, steps: int, every: int, sizes: list[int]) -> tuple[int, int]:
    """Play both envs and compare frames at all sizes; returns the frames seen by night and asleep."""
    stock = Unrendered(seed)
    envs = [CrafterEnv(image_size=size) for size in sizes]
    env = envs[0]
    env.reset(seed)
    night = asleep = 0
    for step, action in enumerate(random_actions(seed, steps)):
        for player in (stock._player, env._player):
            provide(player, step)
        env.step(action)
        stock.step(list(stock.action_names).index(action))
        if step % every:
            continue
        night += env.daylight < 0.5
        asleep += env.sleeping
        snapshot = env.snapshot()
        for other in envs:
            other.restore(snapshot)
            np.testing.assert_array_equal(other.render(), stock.render(other.image_size))
    return night, asleep


def test_frames_equal_stock_by_day_and_night_awake_and_asleep() -> None:
    counts = np.array([assert_same_frames(seed, steps=420, every=1, sizes=[64]) for seed in range(3)])
    night, asleep = counts.sum(axis=0)
    assert night > 200
    assert asleep > 200


def test_frames_equal_stock_at_every_size() -> None:
    night, asleep = assert_same_frames(21, steps=420, every=20, sizes=SIZES)
    assert night
    assert asleep


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 104))
def test_frames_equal_stock_over_a_long_sweep(seed: int) -> None:
    assert_same_frames(seed, steps=1200, every=6, sizes=[18, 64, 100, 288])


@pytest.mark.parametrize("corner", [(0, 0), (AREA[0] - 1, 0), (2, AREA[1] - 1), (AREA[0] - 1, AREA[1] - 1)])
@pytest.mark.parametrize("daylight", [0.05, 0.49, 0.5, 0.93])
def test_frames_equal_stock_at_the_edge_of_the_map(corner: tuple[int, int], daylight: float) -> None:
    env, stock = CrafterEnv(image_size=100), StockCrafter(2)
    env.reset(2)
    for world, player in ((env._world, env._player), (stock._world, stock._player)):
        if world[corner][1] is not None:
            world.remove(world[corner][1])
        world.move(player, corner)
        world.daylight = daylight
    np.testing.assert_array_equal(env.render(), stock.render(100))


@pytest.mark.parametrize("daylight", [0.2, 0.8])
def test_every_sprite_and_material_looks_as_in_stock(daylight: float) -> None:
    env, stock = CrafterEnv(image_size=144), StockCrafter(0)
    env.reset(0)
    for world, player in ((env._world, env._player), (stock._world, stock._player)):
        px, py = player.pos
        for obj in world.objects[1:]:
            world.remove(obj)
        for index, material in enumerate(MATERIALS[1:]):
            world[px - 4 + index % 9, py - 3 + index // 9] = material
        ripe = objects.Plant(world, (px + 1, py + 1))
        ripe.grown = 1000
        for obj in (
            objects.Cow(world, (px - 4, py - 1)),
            Zombie(world, (px - 3, py - 1), player),
            objects.Skeleton(world, (px - 2, py - 1), player),
            objects.Arrow(world, (px - 4, py + 2), (-1, 0)),
            objects.Arrow(world, (px - 3, py + 2), np.array((1, 0))),
            objects.Arrow(world, (px - 2, py + 2), (0, -1)),
            objects.Arrow(world, (px - 1, py + 2), (0, 1)),
            objects.Plant(world, (px, py + 1)),
            ripe,
        ):
            world.add(obj)
        world.daylight = daylight
        for amount, item in enumerate(player.inventory):
            player.inventory[item] = amount % 10
    for facing in [(-1, 0), (1, 0), (0, -1), (0, 1)]:
        env._player.facing = stock._player.facing = facing
        np.testing.assert_array_equal(env.render(), stock.render(144))
    view = env.local_view()
    shown = set(view.objects.ravel()) | {"player-left", "player-right", "player-up", "player-sleep"}
    assert shown == set(SPRITES)
    assert set(view.materials.ravel()) == set(MATERIALS[1:])


scenes = st.builds(
    Scene,
    materials=arrays(np.int64, VIEW, elements=st.integers(0, len(MATERIALS) - 1)),
    sprites=arrays(np.int64, VIEW, elements=st.integers(0, len(SPRITES) - 1)),
    inventory=st.dictionaries(st.text(max_size=3), st.integers(0, 9), min_size=16, max_size=16),
    daylight=st.floats(0, 1),
    sleeping=st.booleans(),
    noise_key=st.integers(0, 2**64 - 1),
)


@given(scene=scenes, size=st.integers(MIN_SIZE, 80))
@settings(max_examples=60)
def test_a_scene_has_one_image_that_belongs_to_the_caller(scene: Scene, size: int) -> None:
    first = renderer(size)(scene)
    copy = first.copy()
    assert first.shape == (size, size, 3)
    assert first.dtype == np.uint8
    first[:] = 0
    np.testing.assert_array_equal(renderer(size)(scene), copy)


def test_night_noise_changes_from_step_to_step_and_from_world_to_world() -> None:
    cells = np.ones(VIEW, np.int64), np.zeros(VIEW, np.int64)
    dark = Scene(*cells, inventory={}, daylight=0.0, sleeping=False, noise_key=1)
    frames = [renderer(64)(dataclasses.replace(dark, noise_key=key)) for key in (1, 2, 1 << 32)]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_an_image_too_small_for_the_view_is_refused_with_the_least_size() -> None:
    with pytest.raises(ValueError, match=r"image_size is 17.*at least 18"):
        CrafterEnv(image_size=17)
