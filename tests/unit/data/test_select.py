"""What is kept of the traces."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.data.config import Examples, Selection
from visionrl.data.png import png_size
from visionrl.data.read import Session, TracedDecision
from visionrl.data.select import content_key, decision_fault, episode_fault, is_loop

RULES = Selection(input_db="a.db", output_dir="out")
SESSION = Session("s", "2026-01-01T00:00:00+00:00", "crafter", 7, "crafter-react", [], None, 3.0, 3)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 32, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


def decision(image: str = "a", actions: tuple[str, ...] = ("do",), **changes: Any) -> TracedDecision:
    prompt = [{"role": "user", "content": [{"type": "image", "sha256": image}]}]
    made = TracedDecision(0, prompt, "answer", None, None, actions, "model", None)
    return replace(made, **changes)


def different(count: int) -> list[TracedDecision]:
    return [decision(image=str(n), actions=(str(n),)) for n in range(count)]


@pytest.mark.parametrize(
    ("fault", "changes", "rules"),
    [
        (None, {}, {}),
        ("error", {"abort_reason": "inference_error"}, {}),
        (None, {"abort_reason": "inference_error"}, {"filter_errors": False}),
        ("timeout", {"abort_reason": "turn_timeout"}, {}),
        (None, {"abort_reason": "max_time"}, {"filter_timeouts": False}),
        (None, {"abort_reason": "max_ops"}, {}),
        ("too few steps", {}, {"min_steps": 4}),
        ("too many steps", {}, {"max_steps": 2}),
        (None, {}, {"min_steps": 3, "max_steps": 3, "min_achievements": 3}),
        ("too few achievements", {}, {"min_achievements": 4}),
    ],
)
def test_an_episode_is_dropped_for_its_reason(
    fault: str | None, changes: dict[str, Any], rules: dict[str, Any]
) -> None:
    found = episode_fault(replace(SESSION, **changes), different(3), RULES.model_copy(update=rules))
    assert found == fault


def test_an_episode_without_a_decision_teaches_nothing() -> None:
    assert episode_fault(SESSION, [], RULES) == "no decision"


def test_going_in_circles_is_a_loop_only_where_it_is_asked_for() -> None:
    circle = [decision(image=str(n)) for n in range(5)]
    asked = RULES.model_copy(update={"detect_loops": True, "max_repeated_actions": 4})
    assert episode_fault(SESSION, circle, RULES) is None
    assert episode_fault(SESSION, circle, asked) == "loop"
    assert episode_fault(SESSION, circle[:4], asked) is None


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(1, 6), st.integers(1, 4))
def test_a_loop_is_a_long_repetition_or_a_small_world(letters: list[str], repeated: int, unique: int) -> None:
    decisions = [decision(image=letter, actions=(letter,)) for letter in letters]
    stretches = [len(list(group)) for _, group in itertools.groupby(letters)]
    assert is_loop(decisions, repeated, unique) == (max(stretches) > repeated or len(set(letters)) < unique)


@pytest.mark.parametrize("turns", [[5] * 6, [1, 2] * 10])
def test_one_action_in_a_row_is_counted_over_turns(turns: list[int]) -> None:
    """As in the reference system: a policy walks into a wall, some times in each call."""
    walk = [decision(image=str(n), actions=("move_left",) * count) for n, count in enumerate(turns)]
    assert is_loop(walk, sum(turns) - 1, 1)
    assert not is_loop(walk, sum(turns), 1)
    assert not is_loop([decision(actions=())], 1, 1)


@pytest.mark.parametrize(
    ("fault", "changes", "images", "rules"),
    [
        (None, {}, [PNG], {}),
        ("empty response", {"answer": " \n"}, [PNG], {}),
        (None, {"answer": ""}, [PNG], {"filter_empty_responses": False}),
        ("invalid tool call", {"error": "no call"}, [PNG], {}),
        (None, {"error": "no call"}, [PNG], {"require_valid_tool_calls": False}),
        (None, {"error": "no call", "label": "the right one"}, [PNG], {}),
        ("image missing", {}, [None], {}),
        ("image damaged", {}, [PNG[:-3]], {}),
        ("too long", {"tokens": 101}, [PNG], {"max_sequence_length": 100}),
        (None, {"tokens": 100}, [PNG], {"max_sequence_length": 100}),
        # Nobody counted: two visual tokens, and two for the answer's six characters.
        ("too long", {}, [PNG], {"max_sequence_length": 3}),
        (None, {}, [PNG], {"max_sequence_length": 4}),
    ],
)
def test_a_decision_is_dropped_for_its_reason(
    fault: str | None, changes: dict[str, Any], images: list[bytes | None], rules: dict[str, Any]
) -> None:
    assert decision_fault(decision(**changes), images, Examples(**rules)) == fault


def test_the_label_is_what_is_learned() -> None:
    assert decision(answer="done", label="wanted").target == "wanted"
    assert content_key(decision(answer="done", label="x")) == content_key(decision(answer="x"))
    assert content_key(decision(image="a")) != content_key(decision(image="b"))


def test_a_png_tells_its_size() -> None:
    assert png_size(PNG) == (64, 32)


@given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
def test_no_damage_to_a_png_passes(place: int, flip: int) -> None:
    damaged = bytearray(PNG)
    damaged[place] ^= flip
    for data in (bytes(damaged), PNG[:place]):
        with pytest.raises(ValueError, match="PNG"):
            png_size(data)
