"""Training and validation never share a start state."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.data.config import Split
from visionrl.data.split import World, validation_worlds

WORLDS = st.dictionaries(st.tuples(st.just("crafter"), st.integers(0, 2**53)), st.floats(0, 22), max_size=60)
SPLITS = st.builds(
    Split, val=st.floats(0, 0.99), seed=st.integers(0, 2**32), stratify_by=st.sampled_from(("achievements", "none"))
)


@given(WORLDS, SPLITS)
def test_the_share_is_kept_and_no_side_is_empty(worlds: dict[World, float], split: Split) -> None:
    held_out = validation_worlds(worlds, split)
    assert held_out <= worlds.keys()
    if split.val == 0 or len(worlds) < 2:
        assert not held_out
    else:
        assert 1 <= len(held_out) < len(worlds)
        assert abs(len(held_out) - split.val * len(worlds)) <= 1


@given(WORLDS, SPLITS, st.randoms(use_true_random=False))
def test_the_order_of_the_traces_changes_nothing(
    worlds: dict[World, float], split: Split, shuffled: random.Random
) -> None:
    items = list(worlds.items())
    shuffled.shuffle(items)
    assert validation_worlds(dict(items), split) == validation_worlds(worlds, split)


@pytest.mark.parametrize("seed", range(20))
def test_stratified_sides_are_equally_good(seed: int) -> None:
    worlds = {("crafter", n): float(n % 10) for n in range(200)}
    held_out = validation_worlds(worlds, Split(val=0.1, seed=seed))
    assert sorted(int(worlds[world]) for world in held_out) == sorted([*range(10), *range(10)])


def test_another_seed_gives_another_split() -> None:
    worlds = {("crafter", n): 3.0 for n in range(100)}
    assert len({validation_worlds(worlds, Split(seed=seed)) for seed in range(10)}) == 10
