"""Broken job files: each answer names the line, the field and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.jobfile import JobFileError, load_job, nearest_line, parse_job

GOOD = """\
apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata:
  name: demo
spec:
  model:
    base: tiny
  rollout:
    envConfig: {imageSize: 144}
  training:
    iterations: 3
"""


def answer(text: str) -> str:
    with pytest.raises(JobFileError) as caught:
        parse_job(text, "job.yaml")
    return str(caught.value)


def test_relative_paths_begin_at_the_job_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD + "    warmStart: {steps: 1, data: {train: data/train.jsonl, val: /data/val.jsonl}}\n")
    warm_start = load_job(file).spec.training.warm_start
    assert warm_start is not None
    assert warm_start.data is not None
    assert warm_start.data.train == f"{tmp_path}/data/train.jsonl"
    assert warm_start.data.val == "/data/val.jsonl"


def test_a_good_file_is_a_job(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD)
    assert load_job(file).spec.training.iterations == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "iterations: 3",
            "iteratons: 3",
            "job.yaml:11: spec.training.iteratons: unknown key; did you mean",
        ),
        ("iterations: 3", "groupSize: 4", "job.yaml:10: spec.training.iterations: required"),
        ("iterations: 3", 'iterations: "3"', "job.yaml:11: spec.training.iterations: input should be a valid integer"),
        ("iterations: 3", "iterations: 0", "job.yaml:11: spec.training.iterations: input should be greater than or"),
        ("iterations: 3", "iterations: 3\n    iterations: 4", 'line 12, column 5: found duplicate key "iterations"'),
        ("  training:", "  trainig:", "job.yaml:10: spec.trainig: unknown key; did you mean training?"),
        ("base: tiny", "base: 7", "job.yaml:7: spec.model.base: input should be a valid string, found 7"),
        ("kind: VisionRLJob", "kind: Job", "job.yaml:2: kind: input should be 'VisionRLJob', found 'Job'"),
        ("name: demo", "name: Demo", "job.yaml:4: metadata.name: string should match pattern"),
        ("imageSize: 144", "imageSize: 150", "job.yaml:9: spec.rollout.envConfig.imageSize: must be a multiple of 16"),
        ("imageSize: 144", "imageSize: 144, hard: yes", "spec.rollout.envConfig.hard: unknown key; known keys: "),
        ("model:\n    base: tiny", "model: tiny", "job.yaml:6: spec.model: input should be a valid dictionary"),
        (
            "iterations: 3",
            "iterations: 3\n    groupSize: 1",
            "job.yaml:12: spec.training.groupSize: must be at",
        ),
        ("iterations: 3", "iterations: [3", "job.yaml: line 12, column 1: "),
        ("kind: VisionRLJob", "kind: VisionRLJob\n---\na: 1", "job.yaml: expected one document, found 2"),
    ],
)
def test_what_is_wrong_and_where(old: str, new: str, expected: str) -> None:
    assert expected in answer(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "job.yaml: expected one document, found 0"),
        ("- a\n", "job.yaml: expected a mapping, found list"),
        ("just text", "job.yaml: expected a mapping, found str"),
        ("\t: x", "job.yaml: line 1"),
        ("a: &a [*a]", "job.yaml: no valid YAML: "),
        ("a: 2001-99-99", "job.yaml: no valid YAML: "),
        ("a: \x1f", "job.yaml: no valid YAML: "),
    ],
)
def test_what_is_no_job_at_all(text: str, expected: str) -> None:
    assert expected in answer(text)


def test_every_problem_is_told_at_once() -> None:
    text = GOOD.replace("iterations: 3", "iterations: 0\n    groupSize: none").replace("base: tiny", "bse: tiny")
    assert len(answer(text).splitlines()) == 4


def test_a_list_item_is_found() -> None:
    text = GOOD + "  failurePolicy:\n    rules:\n      - action: Fail\n        component: gpu\n"
    assert "job.yaml:15: spec.failurePolicy.rules[0].component" in answer(text)


YAML_WORDS = [
    "spec",
    ": ",
    "- ",
    "\n",
    "  ",
    "? ",
    "{",
    "}",
    "[",
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "0x",
    "2001-99-99",
    "'",
]


@given(st.text(max_size=200) | st.lists(st.sampled_from(YAML_WORDS), max_size=30).map("".join))
def test_any_text_gets_an_answer(text: str) -> None:
    with pytest.raises(JobFileError):
        parse_job(text)


def test_the_nearest_line_is_that_of_the_field_around() -> None:
    lines = {"spec": 1, "spec.a": 2, "spec.a[0]": 3}
    assert nearest_line("spec.a[0].b.c", lines) == 3
    assert nearest_line("spec.a[7]", lines) == 2
    assert nearest_line("spec.z", lines) == 1
    assert nearest_line("other", lines) is None
