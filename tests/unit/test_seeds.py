"""Seeds as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.seeds import MAX_SEED, parse_seeds, seeds_text

SEEDS = st.lists(st.integers(0, 50) | st.integers(0, MAX_SEED), min_size=1, unique=True).map(tuple)


@given(SEEDS)
def test_what_is_written_is_read_again(seeds: tuple[int, ...]) -> None:
    assert parse_seeds(seeds_text(seeds)) == seeds
    assert parse_seeds(",".join(map(str, seeds))) == seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("7", (7,)), ("0-3", (0, 1, 2, 3)), ("0,1,2", (0, 1, 2)), ("5-6, 1 ,9 - 9", (5, 6, 1, 9)), ("00", (0,))],
)
def test_ranges_and_lists_mix(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "'' is neither a seed"),
        ("1,,2", "'' is neither a seed"),
        ("-1", "'-1' is neither a seed"),
        ("a", "'a' is neither a seed nor a range such as 0-299"),
        ("٣", "is neither a seed"),
        ("1-2-3", "'1-2-3' is neither a seed"),
        ("9-2", "ends before it begins"),
        ("1,0-3", "seed 1 is named twice"),
        (str(MAX_SEED + 1), "beyond the largest seed"),
        ("0-9999999999", "more than 100000 seeds"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_seeds(text)


@given(st.text("0123456789-, x", max_size=12))
def test_no_text_does_anything_but_parse_or_explain(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except ValueError:
        return
    assert len(set(seeds)) == len(seeds) > 0
