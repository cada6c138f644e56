"""The compiled world generator makes stock Crafter's worlds."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.unit.taskapp.stock_crafter import Unrendered, assert_same_state
from visionrl_taskapp.envs.crafter.env import CrafterEnv


def check_seeds(seeds: range | list[int]) -> None:
    env = CrafterEnv(image_size=18)
    for seed in seeds:
        env.reset(seed)
        assert_same_state(env, Unrendered(seed))


def test_worlds_equal_stock_creature_by_creature() -> None:
    check_seeds([*range(30), 2**31 - 1, 2**31, 2**64 + 17, 10**30])


@pytest.mark.slow
def test_a_hundred_more_worlds_equal_stock() -> None:
    check_seeds(range(1000, 1100))


def test_a_seed_gives_its_world_whatever_was_played_before() -> None:
    env, fresh = CrafterEnv(image_size=18), CrafterEnv(image_size=18)
    env.reset(5)
    for _ in range(20):
        env.step("move_left")
    env.reset(7)
    fresh.reset(7)
    assert env.state_hash() == fresh.state_hash()
    assert env.step_count == 0
    assert not env.unlocked


def test_global_random_state_is_neither_used_nor_changed() -> None:
    np.random.seed(3)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    env = CrafterEnv(image_size=18)
    env.reset(11)
    env.step("do")
    env.render()
    first = env.state_hash()
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], before)
    np.random.seed(4)
    env.reset(11)
    env.step("do")
    assert env.state_hash() == first


PROGRAM = """
from visionrl_taskapp.envs.crafter.env import CrafterEnv, warm_up
from visionrl_taskapp.envs.crafter.render import _draw_night
from visionrl_taskapp.envs.crafter.worldgen import _noise_field, _place_creatures, _place_materials

compiled = [_noise_field, _place_materials, _place_creatures, _draw_night]
warm_up()
print([len(function.signatures) for function in compiled])
for size in (63, 64):  # the map fills the frame's width, or has a border
    env = CrafterEnv(image_size=size)
    env.reset(3)
    env._world.daylight = 0.1
    env.render()
    env._player.sleeping = True
    env.render()
print([len(function.signatures) for function in compiled])
"""


def test_after_warm_up_nothing_is_left_to_compile() -> None:
    # In a process of its own: what other tests compiled in this one would hide what the warm-up leaves out.
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    after_warm_up, after_playing = map(json.loads, output.splitlines())
    assert all(after_warm_up)
    assert after_playing == after_warm_up
