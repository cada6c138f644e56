"""What is taken from a trainer's report, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.status import Progress, TrainerReport
from visionrl_core.report import MAX_REPORT_BYTES, MAX_TEXT, read_report


def read(document: Any) -> TrainerReport | None:
    return read_report(json.dumps(document).encode())


def test_a_report_comes_through_as_it_was_written() -> None:
    report = TrainerReport(
        phase="Evaluating", message="seed 12/300", base_ready=True, progress=Progress(iteration=2, reward=1.5)
    )
    assert read_report(report.model_dump_json(by_alias=True).encode()) == report
    assert read_report(report.model_dump_json().encode()) == report


@pytest.mark.parametrize(
    "wrong",
    [
        {"progress": {"iteration": "three", "episodes": 4}},
        {"progress": {"iteration": -1, "episodes": 4}},
        {"progress": {"reward": float("nan"), "episodes": 4}},
        {"progress": {"iteration": 10**400, "episodes": 4}},
        {"progress": {"fromTheFuture": [1], "episodes": 4}},
        {"progress": {"evaluation": {"before": {"mean": 1.0}}, "episodes": 4}},
        {"progress": {"evaluation": {"before": [[[[[[[1]]]]]]]}, "episodes": 4}},
        {"message": ["a", "b"], "progress": {"episodes": 4}},
    ],
    ids=str,
)
def test_what_is_wrong_is_left_out_and_the_rest_is_shown(wrong: dict[str, Any]) -> None:
    report = read({"phase": "Training", **wrong})
    assert report is not None
    assert report.progress == Progress(episodes=4)


def test_a_phase_of_a_newer_trainer_is_one_in_which_it_runs() -> None:
    report = read({"phase": "Exporting", "message": "to the hub"})
    assert report == TrainerReport(phase="Training", message="to the hub")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"<html>",
        b'{"phase": 3}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"\xff\xfe",
        b"1" * 9999,
    ],
    ids=lambda content: content[:10].decode(errors="replace"),
)
def test_what_is_no_report_is_none(content: bytes) -> None:
    assert read_report(content) is None


def test_a_report_that_is_too_long_is_none() -> None:
    assert read({"phase": "Training", "message": "x" * MAX_REPORT_BYTES}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800\n\x00"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from(["message", "baseReady", "progress", "policy", "new"]), json_values)
progress = st.fixed_dictionaries(
    {"progress": st.dictionaries(st.sampled_from(["iteration", "eta", "reward"]), json_values)}
)


@given(st.sampled_from(["Training", "Other"]), fields, progress | st.just({}))
def test_every_report_can_be_stored(phase: str, some: dict[str, Any], more: dict[str, Any]) -> None:
    report = read({**some, **more, "phase": phase})
    assert report is not None
    text = report.model_dump_json(by_alias=True)
    assert "NaN" not in text
    assert "\n" not in text
    assert len(text) < 10 * MAX_TEXT
