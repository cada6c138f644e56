"""Broken job files: each answer names the line, the field and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import document
from visionrl.job import Job
from visionrl.jobfile import JobFileError, load_job, parse_job, read_resolved_job
from visionrl.problems import nearest_line

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
        ("iterations: 3", 'iterations: "3"', "job.yaml:11: spec.training.iterations: must be a whole number"),
        ("iterations: 3", "iterations: 0", "job.yaml:11: spec.training.iterations: must be greater than or"),
        (
            "iterations: 3",
            "iterations: 3\n    iterations: 4",
            'job.yaml:12: not YAML: found duplicate key "iterations"',
        ),
        ("  training:", "  trainig:", "job.yaml:10: spec.trainig: unknown key; did you mean training?"),
        ("base: tiny", "base: 7", "job.yaml:7: spec.model.base: must be text, found 7"),
        ("kind: VisionRLJob", "kind: Job", "job.yaml:2: kind: must be 'VisionRLJob', found 'Job'"),
        ("name: demo", "name: Demo", "job.yaml:4: metadata.name: must be 1 to 45 of a-z, 0-9 and -"),
        ("imageSize: 144", "imageSize: 150", "job.yaml:9: spec.rollout.envConfig.imageSize: must be a multiple of 16"),
        ("imageSize: 144", "imageSize: 144, hard: yes", "spec.rollout.envConfig.hard: unknown key; known keys: "),
        ("model:\n    base: tiny", "model: tiny", "job.yaml:6: spec.model: must be a mapping"),
        (
            "iterations: 3",
            "iterations: 3\n    groupSize: 1",
            "job.yaml:12: spec.training.groupSize: must be at",
        ),
        ("iterations: 3", "iterations: [3", "job.yaml:12: not YAML: "),
        (
            "kind: VisionRLJob",
            "kind: VisionRLJob\n---\na: 1",
            "job.yaml: must have one document, found 2; give each a file of its own",
        ),
    ],
)
def test_what_is_wrong_and_where(old: str, new: str, expected: str) -> None:
    assert expected in answer(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "job.yaml: must have one document, found 0"),
        ("- a\n", "job.yaml: must be a mapping (key: value), found a list"),
        ("just text", "job.yaml: must be a mapping (key: value), found a single value"),
        ("\t: x", "job.yaml:1: "),
        ("a: &a [*a]", "an alias stands inside what it stands for"),
        ("a: 2001-99-99", "job.yaml: not YAML: "),
        ("a: \x1f", "job.yaml: not YAML: "),
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


# --- everything that is wrong, at once


def test_contradictions_are_told_beside_what_the_schema_refuses() -> None:
    text = GOOD.replace("iterations: 3", "iterations: 0\n    groupSize: 1\n    updatesPerIteraton: 2")
    listed = answer(text)
    assert "spec.training.iterations: must be greater" in listed
    assert "spec.training.updatesPerIteraton: unknown key; did you mean updatesPerIteration?" in listed
    assert "spec.training.groupSize: must be at least 2" in listed


@pytest.mark.parametrize(
    "wrong",
    ['maxModelLen: "8192"', "maxModelLn: 8192", "maxModelLen: .nan"],
)
def test_no_contradiction_is_told_with_a_value_that_is_wrong_itself(wrong: str) -> None:
    """`maxTokens` may well fit what was meant."""
    text = GOOD.replace("envConfig:", "policyConfig: {maxTokens: 5000}\n    envConfig:")
    assert "maxTokens: leaves no room" in answer(text + "    groupSize: 1\n")
    listed = answer(text + "    groupSize: 1\n" + f"  inference: {{vllm: {{{wrong}}}}}\n")
    assert "maxTokens" not in listed
    assert "spec.training.groupSize" in listed


def test_an_object_as_kubectl_prints_it_is_a_job() -> None:
    text = GOOD.replace("  name: demo", "  name: demo\n  uid: 1-2\n  generation: 3\n  managedFields: [{a: b}]")
    assert parse_job(text + "status: {phase: Running}\n").name == "demo"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "Qwen2_5_VLFor"),
        ({"model_type": "qwen3_vl_moe"}, "qwen3_vl_moe"),
        ({"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}, None),
        ([], "not a model's configuration"),
    ],
)
def test_the_architecture_of_a_model_on_this_machine_is_known(tmp_path: Path, config: object, told: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = GOOD.replace("base: tiny", f"base: {tmp_path}\n    supportsVision: true")
    if told is None:
        assert parse_job(text).spec.model.base == str(tmp_path)
    else:
        assert f"job.yaml:7: spec.model.base: {'the trainer trains Qwen3-VL' if 'Qwen' in told else ''}" in answer(text)
        assert told in answer(text)


# --- resolved jobs, of any version


def resolved(tmp_path: Path, changes: dict[str, Any]) -> tuple[Job, list[str]]:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(document(changes)))
    return read_resolved_job(file)


def test_what_a_newer_version_added_is_left_out(tmp_path: Path) -> None:
    found, left_out = resolved(
        tmp_path,
        {
            "fieldOfTomorrow": {"a": [1]},
            "training.guards": {"later": 1},
            "inference.gpu": {"tolerations": [{"key": "a", "later": 1}]},
            "failurePolicy.rules": [{"action": "Fail", "component": "trainer", "later": True}],
        },
    )
    assert sorted(left_out) == [
        "spec.failurePolicy.rules[0].later",
        "spec.fieldOfTomorrow",
        "spec.inference.gpu.tolerations[0].later",
        "spec.training.guards.later",
    ]
    assert found.spec.failure_policy.rules[0].component == "trainer"


def test_words_of_tomorrow_in_sections_that_no_component_reads_are_left_out(tmp_path: Path) -> None:
    found, left_out = resolved(
        tmp_path,
        {
            "lifecycle.cleanupPolicy": "Later",
            "failurePolicy.rules": [{"action": "Later"}],
            "placement": {"topology": 1},
        },
    )
    assert sorted(left_out) == ["spec.failurePolicy", "spec.lifecycle", "spec.placement"]
    assert found.spec.lifecycle.cleanup_policy == "DeletePods"


def test_words_of_tomorrow_in_what_a_component_does_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"spec\.algorithm\.loss"):
        resolved(tmp_path, {"algorithm.loss": "later"})
