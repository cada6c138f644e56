"""How well the teacher plays, and that it plays by the model's rules."""

from collections.abc import Sequence

import numpy as np
import pytest

from visionrl.job import FIRST_TRAINING_SEED
from visionrl_taskapp.envs.crafter import scripted
from visionrl_taskapp.envs.crafter.env import CrafterEnv, LocalView
from visionrl_taskapp.envs.crafter.rules import ACTIONS, rules
from visionrl_taskapp.envs.crafter.scripted import Cell
from visionrl_taskapp.envs.crafter.world import VIEW

# Seeds that no choice about the teacher was made on.
FRESH = FIRST_TRAINING_SEED + 777_000


def achievements(seed: int, turns: int = 30, max_actions: int = 4) -> int:
    env = CrafterEnv(64)
    env.reset(seed)
    for _ in range(turns):
        for action in scripted.plan(env.local_view(), max_actions):
            if env.step(action).done:
                return len(env.unlocked)
    return len(env.unlocked)


def test_the_teacher_plays_well_on_a_few_seeds() -> None:
    assert np.mean([achievements(FRESH + seed) for seed in range(10)]) >= 7.5


@pytest.mark.slow
def test_the_teacher_reaches_nine_achievements_in_thirty_decisions_on_fresh_seeds() -> None:
    scores = [achievements(FRESH + seed) for seed in range(120)]
    assert np.mean(scores) - 1.96 * np.std(scores, ddof=1) / len(scores) ** 0.5 >= 9


def test_a_plan_depends_on_the_view_alone() -> None:
    env = CrafterEnv(64)
    env.reset(5)
    view = env.local_view()
    assert scripted.plan(view, 4) == scripted.plan(view, 4)


def view(
    ground: str = "grass",
    facing: Cell = (0, 1),
    sleeping: bool = False,
    objects: Sequence[tuple[Cell, str]] = (),
    materials: Sequence[tuple[Cell, str]] = (),
    **inventory: int,
) -> LocalView:
    cells, sprites = np.full(VIEW, ground, dtype="<U12"), np.full(VIEW, "", dtype="<U12")
    sprites[4, 3] = "player-down"
    for cell, name in materials:
        cells[cell] = name
    for cell, name in objects:
        sprites[cell] = name
    return LocalView(cells, sprites, facing, dict(rules().initial) | inventory, sleeping)


@pytest.mark.parametrize("max_actions", range(1, 9))
def test_plans_fit_into_a_turn(max_actions: int) -> None:
    env = CrafterEnv(64)
    env.reset(11)
    for _ in range(30):
        plan = scripted.plan(env.local_view(), max_actions)
        assert 1 <= len(plan) <= max_actions
        assert set(plan) <= set(ACTIONS)
        for action in plan:
            env.step(action)


def test_it_fights_a_zombie_beside_it_first() -> None:
    assert scripted.plan(view(objects=[((5, 3), "zombie")], sapling=1), 4) == ["move_right", "do", "do", "do"]


def test_it_sleeps_on_while_asleep() -> None:
    assert set(scripted.plan(view(sleeping=True, energy=4), 4)) == {"sleep"}


def test_it_makes_every_tool_that_it_can_pay_for() -> None:
    beside = view(materials=[((4, 4), "table")], wood=2)
    assert scripted.plan(beside, 4) == ["make_wood_pickaxe", "make_wood_sword"]


def test_it_walks_to_a_tree_and_turns_to_it() -> None:
    assert scripted.plan(view(materials=[((2, 4), "tree")], wood=1), 5) == ["move_left", "move_left", "move_down", "do"]


def test_it_never_walks_into_lava_that_it_sees() -> None:
    walled = [((x, y), "water") for x in range(9) for y in range(7) if (x, y) != (4, 3)]
    trapped = view(materials=[*walled, ((4, 4), "lava")], wood_pickaxe=1, stone_pickaxe=1, drink=9)
    assert scripted.plan(trapped, 4)[0] != "move_down"
    ahead = view("path", materials=[((4, 5), "lava")], wood_pickaxe=1, stone_pickaxe=1)
    assert scripted.plan(ahead, 4) == ["move_down"]


def test_disturbing_plans_are_random() -> None:
    rng = np.random.default_rng(0)
    others = [scripted.random_plan(4, rng) for _ in range(200)]
    assert all(1 <= len(other) <= 4 and set(other) <= set(ACTIONS) for other in others)
    assert len({tuple(other) for other in others}) > 50
