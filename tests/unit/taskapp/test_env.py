"""What a user of `CrafterEnv` relies on: stock rules, one outcome for one input, exact forks."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crafter import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.taskapp.stock_crafter import StockCrafter, Unrendered, assert_same_state, provide, random_actions
from visionrl_taskapp.envs.crafter import env as taskapp_env
from visionrl_taskapp.envs.crafter.env import (
    ACHIEVEMENTS,
    ACTIONS,
    CrafterEnv,
    Difficulty,
    EpisodeOver,
    Snapshot,
    StepResult,
    rules,
)
from visionrl_taskapp.envs.crafter.world import Zombie

actions = st.lists(st.sampled_from(ACTIONS), max_size=40)


def started(seed: int = 1, size: int = 18, difficulty: Difficulty = "normal", length: int = 10_000) -> CrafterEnv:
    env = CrafterEnv(size, difficulty, length)
    env.reset(seed)
    return env


def play(env: CrafterEnv, sequence: list[str]) -> list[object]:
    """Results, states and frames of every step, until the episode ends."""
    trace: list[object] = []
    for action in sequence:
        if env.done:
            break
        trace += [env.step(action), env.state_hash(), env.render().tobytes()]
    return trace


@pytest.fixture(scope="module")
def midnight() -> Snapshot:
    """A snapshot at night with the player asleep."""
    env = started(seed=4)
    for step, action in enumerate(random_actions(4, 200)):
        provide(env._player, step)
        env.step(action)
    env._player.inventory["energy"] = 3
    while not env.sleeping:
        env.step("sleep")
    assert env.daylight < 0.5
    return env.snapshot()


# Stock rules


def assert_same_transitions(seed: int, steps: int) -> None:
    env, stock = started(seed), Unrendered(seed)
    for step, action in enumerate(random_actions(seed, steps)):
        for player in (stock._player, env._player):
            provide(player, step)
        stock._last_health = stock._player.health
        before = env.unlocked
        result = env.step(action)
        _, reward, done, info = stock.step(ACTIONS.index(action))
        assert (result.reward, result.done) == (reward, done)
        assert result.dead == (info["discount"] == 0)
        assert env.inventory == info["inventory"]
        assert env.achievements == info["achievements"]
        assert set(result.unlocked) == env.unlocked - before
        if step % 25 == 0:
            assert_same_state(env, stock)


def test_normal_difficulty_is_stock_crafter() -> None:
    for seed in range(40, 44):
        assert_same_transitions(seed, steps=400)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 216))
def test_normal_difficulty_is_stock_crafter_over_long_episodes(seed: int) -> None:
    assert_same_transitions(seed, steps=1500)


def test_an_episode_left_alone_ends_as_in_stock() -> None:
    for seed in range(3):
        env, stock = started(seed), Unrendered(seed)
        done = False
        while not done:
            result = env.step("noop")
            _, reward, done, _ = stock.step(0)
            assert (result.reward, result.done) == (reward, done)
        assert result.dead
        assert_same_state(env, stock)


def test_actions_and_achievements_are_the_packages_own() -> None:
    assert list(ACTIONS) == constants.actions
    assert len(ACTIONS) == 17
    assert ACTIONS[0] == "noop"
    assert list(ACHIEVEMENTS) == constants.achievements
    assert len(ACHIEVEMENTS) == 22


def test_rules_say_what_actions_cost() -> None:
    place = {p.name: p for p in rules().place}
    make = {m.name: m for m in rules().make}
    collect = {c.material: c for c in rules().collect}
    assert {f"place_{name}" for name in place} | {f"make_{name}" for name in make} < set(ACTIONS)
    for item, recipe in make.items():
        env = started()
        env._player.inventory.update(recipe.uses)
        px, py = env._player.pos
        for index, material in enumerate(recipe.nearby):
            env._world[px + 1, py + index] = material
        assert env.step(f"make_{item}").unlocked == (f"make_{item}",)
        assert env.inventory[item] == recipe.gives
        assert all(env.inventory[used] == 0 for used in recipe.uses)
    assert collect["grass"].probability == 0.1
    assert collect["diamond"].requires == {"iron_pickaxe": 1}


def test_actions_are_taken_by_name_or_by_number() -> None:
    by_name, by_number, by_numpy = started(), started(), started()
    for action in random_actions(0, 30):
        index = ACTIONS.index(action)
        assert by_name.step(action) == by_number.step(index) == by_numpy.step(np.int64(index))
    assert by_name.state_hash() == by_number.state_hash() == by_numpy.state_hash()


# Errors


@pytest.mark.parametrize("action", ["jump", "", "NOOP", -1, 17])
def test_an_unknown_action_is_refused_and_changes_nothing(action: str | int) -> None:
    env = started()
    before = env.state_hash()
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    assert env.state_hash() == before


def test_acting_after_the_end_is_refused() -> None:
    env = started(length=2)
    assert not env.step("noop").done
    assert env.step("noop") == StepResult(reward=0.0, unlocked=(), dead=False, done=True)
    with pytest.raises(EpisodeOver, match="length of 2 steps"):
        env.step("noop")
    env.reset(1)
    env._player.health = 0
    with pytest.raises(EpisodeOver, match="dead"):
        env.step("noop")


@pytest.mark.parametrize("use", ["render", "snapshot", "state_hash", "local_view"])
def test_an_env_without_an_episode_says_what_to_call(use: str) -> None:
    with pytest.raises(RuntimeError, match=r"reset\(seed\)"):
        getattr(CrafterEnv(), use)()


def test_settings_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"difficulty is 'medium'; use one of easy, normal, hard"):
        CrafterEnv(difficulty="medium")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length is 0"):
        CrafterEnv(length=0)
    with pytest.raises(ValueError, match="seed is -1"):
        CrafterEnv().reset(-1)


# Determinism

_EPISODES = """
import hashlib, random, sys
junk = [object() for _ in range(int(sys.argv[1]))]
random.Random(int(sys.argv[1])).shuffle(junk)
del junk[::2]
import numpy as np
from visionrl_taskapp.envs.crafter.env import ACTIONS, CrafterEnv
env = CrafterEnv(image_size=36)
digest, nights, seed = hashlib.sha256(), 0, 0
env.reset(seed)
for action in np.random.default_rng(0).integers(1, 6, 900).tolist():
    if env.done:
        seed += 1
        env.reset(seed)
    result = env.step(action)
    junk.append([result] * (action * 7))
    digest.update(repr((result, env.state_hash())).encode() + env.render().tobytes())
    nights += env.daylight < 0.5
print(digest.hexdigest(), nights)
"""


def test_processes_agree_whatever_their_memory_and_hash_seed() -> None:
    source = Path(taskapp_env.__file__).parents[3]
    path = os.pathsep.join([str(source), *sys.path])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", _EPISODES, heap],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for heap, hash_seed in [("10", "0"), ("54321", "12345")]
    ]
    assert outputs[0] == outputs[1]
    assert int(outputs[0][1]) > 100


def test_transitions_depend_neither_on_the_image_size_nor_on_rendering() -> None:
    envs = [started(8, size) for size in (18, 64, 150)]
    for step, action in enumerate(random_actions(8, 330)):
        results = []
        for renders, env in enumerate(envs):
            provide(env._player, step)
            results.append(env.step(action))
            for _ in range(renders):
                env.render()
        assert results[0] == results[1] == results[2]
    states = [env._world.random.get_state()[1].tolist() for env in envs]
    assert states[0] == states[1] == states[2]
    assert envs[0].state_hash() == envs[1].state_hash() == envs[2].state_hash()


def test_envs_played_in_turns_do_not_disturb_each_other() -> None:
    sequences = {seed: random_actions(seed, 60) for seed in range(6)}
    alone = {seed: play(started(seed), sequence) for seed, sequence in sequences.items()}
    envs = {seed: started(seed) for seed in sequences}
    together: dict[int, list[object]] = {seed: [] for seed in sequences}
    for step in range(60):
        for seed, env in envs.items():
            together[seed] += play(env, sequences[seed][step : step + 1])
    assert together == alone


# Snapshots


@given(seed=st.integers(0, 5), before=actions, after=actions, other=actions)
@settings(max_examples=25)
def test_a_fork_goes_on_exactly_as_the_episode_would_have(
    seed: int, before: list[str], after: list[str], other: list[str]
) -> None:
    env = started(seed)
    play(env, before)
    snapshot = env.snapshot()
    expected = play(env, after)
    fork = started(seed + 1)
    play(fork, other)
    for _ in range(2):  # the second fork shows that the first one left the snapshot alone
        fork.restore(snapshot)
        assert play(fork, after) == expected
    env.restore(snapshot)
    assert play(env, after) == expected


def test_a_fork_at_night_is_exact_in_another_size_and_through_pickle(midnight: Snapshot) -> None:
    sequence = random_actions(9, 150)
    env, fork, stranger = CrafterEnv(image_size=64), CrafterEnv(image_size=64), CrafterEnv(image_size=100)
    for each, snapshot in [(env, midnight), (fork, pickle.loads(pickle.dumps(midnight))), (stranger, midnight)]:
        each.restore(snapshot)
        assert each.sleeping
    assert play(env, sequence) == play(fork, sequence)
    for action in sequence[: stranger.length]:
        if stranger.done:
            break
        stranger.step(action)
    assert stranger.state_hash() == env.state_hash()


def test_restored_envs_and_their_snapshot_share_nothing_that_changes(midnight: Snapshot) -> None:
    one, two = CrafterEnv(image_size=18), CrafterEnv(image_size=18)
    one.restore(midnight)
    two.restore(midnight)
    before = two.state_hash()
    play(one, random_actions(1, 100))
    assert two.state_hash() == before
    one.inventory["wood"] = 9
    one.achievements["collect_wood"] = 9
    two.restore(midnight)
    assert two.state_hash() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        midnight.step_count = 0  # type: ignore[misc]


def test_a_snapshot_of_another_difficulty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"difficulty 'normal'.*'hard'"):
        CrafterEnv(difficulty="hard").restore(started().snapshot())


# Difficulty


def test_difficulty_decides_how_long_a_passive_player_lives() -> None:
    lives = {}
    for difficulty in ("easy", "normal", "hard"):
        env = CrafterEnv(image_size=18, difficulty=difficulty)
        lives[difficulty] = 0
        for seed in range(32):
            env.reset(seed)
            while not env.done:
                env.step("noop")
            lives[difficulty] += env.step_count
    assert lives["easy"] > 1.1 * lives["normal"]
    assert lives["normal"] > 1.1 * lives["hard"]


@pytest.mark.parametrize(("difficulty", "hits"), [("easy", (1, 3)), ("normal", (2, 7)), ("hard", (3, 9))])
def test_difficulty_decides_what_a_hit_costs(difficulty: Difficulty, hits: tuple[int, int]) -> None:
    for sleeping, damage in zip((False, True), hits, strict=True):
        env = started(difficulty=difficulty)
        env._player.sleeping = sleeping
        px, py = env._player.pos
        zombie = Zombie(env._world, (px + 1, py), env._player)
        env._world.add(zombie)
        while not zombie.cooldown:
            zombie.update()
        assert env.inventory["health"] == 9 - damage


def test_difficulty_changes_neither_map_nor_creatures_at_the_start() -> None:
    assert started(difficulty="easy").state_hash() == started(difficulty="hard").state_hash()


def test_grassland_holds_more_zombies_by_night_the_harder_it_is() -> None:
    counts = []
    for difficulty in ("easy", "normal", "hard"):
        env = CrafterEnv(image_size=18, difficulty=difficulty)
        counts.append(0)
        for seed in range(3):
            env.reset(seed)
            for step in range(290):
                provide(env._player, step)
                env.step("noop")
            counts[-1] += sum(isinstance(obj, Zombie) for obj in env._world.objects)
    assert counts[0] < 0.7 * counts[1]
    assert counts[1] < 0.8 * counts[2]


# What is seen, and state identity


def test_the_local_view_names_what_stock_draws() -> None:
    env, stock = started(12), StockCrafter(12)
    for action in random_actions(12, 120):
        env.step(action)
        stock.step(ACTIONS.index(action))
        view, player = env.local_view(), stock._player
        px, py = player.pos
        for x in range(9):
            for y in range(7):
                material, obj = stock._world[px + x - 4, py + y - 3]
                assert view.materials[x, y] == (material or "")
                assert view.objects[x, y] == (obj.texture if obj else "")
        assert view.facing == tuple(player.facing)
        assert view.inventory == player.inventory
        assert view.sleeping == player.sleeping


def test_two_ways_to_one_state_have_one_hash() -> None:
    there, here = started(1), started(1)
    start = there.state_hash()
    for action in ("move_left", "move_right", "noop"):
        there.step(action)
    for action in ("noop", "move_left", "move_right"):
        here.step(action)
    assert there.state_hash() == here.state_hash() != start
    here._world.random.random_sample()
    assert there.state_hash() == here.state_hash()
    here._player.achievements["collect_drink"] += 1
    assert there.state_hash() != here.state_hash()
    there._player.achievements["collect_drink"] += 5
    assert there.state_hash() == here.state_hash()


def test_whatever_decides_the_future_changes_the_hash() -> None:
    env = started(6)
    for action in random_actions(6, 30):
        env.step(action)
    snapshot = env.snapshot()
    zombie = next(i for i, obj in enumerate(env._world._objects) if isinstance(obj, Zombie))
    changes = [
        lambda: env._player.inventory.update(wood=7),
        lambda: setattr(env._player, "facing", (-env._player.facing[0], -env._player.facing[1])),
        lambda: setattr(env._player, "_hunger", env._player._hunger + 1),
        lambda: setattr(env._player, "sleeping", True),
        lambda: setattr(env._world._objects[zombie], "cooldown", 4),
        lambda: env._world.remove(env._world._objects[zombie]),
        lambda: env._world.__setitem__((0, 0), "table"),
        lambda: setattr(env, "_step_count", 500),
    ]
    hashes = {env.state_hash()}
    for change in changes:
        env.restore(snapshot)
        change()
        hashes.add(env.state_hash())
    assert len(hashes) == 1 + len(changes)


@given(seed=st.integers(0, 3), sequence=actions)
@settings(max_examples=15)
def test_looking_changes_nothing(seed: int, sequence: list[str]) -> None:
    watched, unwatched = started(seed, 64), started(seed)
    for action in sequence:
        if watched.done:
            break
        assert watched.step(action) == unwatched.step(action)
        watched.render()
        watched.local_view()
        watched.snapshot()
        watched.state_hash()
    assert watched.snapshot().world.random["state"]["key"].tolist() == (
        unwatched.snapshot().world.random["state"]["key"].tolist()
    )
    assert watched.state_hash() == unwatched.state_hash()
