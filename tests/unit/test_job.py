"""The job model and the rules that span its fields."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.jobs import document, job
from visionrl.checks import contradictions, evaluation_seeds, uses_vision, warnings
from visionrl.job import Job


def test_the_smallest_job_is_sound() -> None:
    assert contradictions(job().spec) == []
    assert warnings(job().spec) == []


def test_a_job_survives_its_json() -> None:
    assert Job.model_validate_json(job().model_dump_json(by_alias=True)) == job()


@pytest.mark.parametrize("name", ["", "Upper", "1st", "end-", "a_b", "a" * 46])
def test_names_that_kubernetes_would_refuse(name: str) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate({**document(), "metadata": {"name": name}})


@pytest.mark.parametrize(
    "change",
    [
        {"training.iterations": "3"},  # no silent conversion
        {"training.iterations": 0},
        {"training.learningRate": -1.0},
        {"suspend": "yes"},
        {"algorithm.loss": "ppo"},
        {"inference.gpu": {"count": 0}},
        {"trainer.resources": {"memory": "lots"}},
        {"training.learning_rate": 1e-3},  # camelCase only
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate(document(change), by_alias=True, by_name=False)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"algorithm.type": "sft"}, "spec.training.warmStart"),
        ({"training.groupSize": 1}, "spec.training.groupSize"),
        ({"training.warmStart": {"steps": 1}}, "spec.training.warmStart.episodes"),
        ({"training.warmStart": {"steps": 1, "episodes": 1, "data": {"train": "/t"}}}, "spec.training.warmStart.data"),
        ({"training.warmStart": {"steps": 1, "episodes": 1, "untilLoss": 2.0}}, "spec.training.warmStart.untilLoss"),
        (
            {"training.warmStart": {"steps": 1, "data": {"train": "/t"}, "untilLoss": 2.0}},
            "spec.training.warmStart.untilLoss",
        ),
        ({"training.warmStart": {"steps": 1, "data": {"train": "t"}}}, "spec.training.warmStart.data.train"),
        ({"algorithm.gamma": 0.9}, "spec.algorithm.gamma"),
        ({"algorithm.clipLow": 0.3, "algorithm.clipHigh": 0.2}, "spec.algorithm.clipHigh"),
        ({"model": {"base": "Qwen/Qwen3-VL-4B-Instruct", "tiny": {}}}, "spec.model.tiny"),
        ({"model.tiny": {"hiddenSize": 30}}, "spec.model.tiny.hiddenSize"),
        ({"model.base": "gpt2"}, "spec.rollout.policyConfig.imageOnlyMode"),
        ({"inference.vllm": {"limitMmPerPrompt": {"image": 0}}}, "spec.inference.vllm.limitMmPerPrompt.image"),
        ({"rollout.envConfig.imageSize": 100}, "spec.rollout.envConfig.imageSize"),
        ({"inference.gpu": {"count": 2}}, "spec.inference.gpu.count"),
        ({"inference.vllm": {"tensorParallelSize": 2}}, "spec.inference.vllm.tensorParallelSize"),
        ({"trainer.gpu": {"count": 2}}, "spec.trainer.gpu.count"),
        ({"inference.vllm": {"maxModelLen": 512}}, "spec.rollout.policyConfig.maxTokens"),
        ({"rollout.maxOps": 2}, "spec.rollout.maxOps"),
        ({"rollout.maxTimeS": 1.0}, "spec.rollout.policyConfig.turnTimeoutS"),
        ({"training.rewards": {"weights": {"collect_wood": 2.0}}}, "spec.training.rewards.weights"),
        ({"training.updatesPerIteration": 1000}, "spec.training.updatesPerIteration"),
        ({"evaluation.firstSeed": 999_999}, "spec.evaluation.episodes"),
        ({"storage": {"runClaim": "a", "runSize": "1Gi"}}, "spec.storage.runSize"),
        ({"storage": {"storageClassName": "fast", "ephemeral": True}}, "spec.storage.storageClassName"),
        ({"storage": {"export": {"adapter": "hf://only-a-name"}}}, "spec.storage.export.adapter"),
        ({"storage": {"ephemeral": True, "runClaim": "mine"}}, "spec.storage.ephemeral"),
        ({"storage": {"runClaim": "mine", "retention": {"whenDeleted": "Delete"}}}, "spec.storage.retention"),
        ({"failurePolicy.rules": [{"action": "Fail"}]}, "spec.failurePolicy.rules[0]"),
        ({"placement.topology": "SameNode", "inference.gpu": {}}, "spec.placement.topology"),
        (
            {"overrides.trainer": {"env": [{"name": "VISIONRL_PORT", "value": "1"}]}},
            "spec.overrides.trainer.env[0].name",
        ),
        ({"overrides.trainer": {"env": [{"name": "A"}]}}, "spec.overrides.trainer.env[0].value"),
        (
            {"overrides.trainer": {"env": [{"name": "HF_TOKEN", "value": "hf_x"}]}},
            "spec.overrides.trainer.env[0].value",
        ),
        *(
            ({"overrides.trainer": {"podTemplate": template}}, f"spec.overrides.trainer.podTemplate.{path}")
            for template, path in (
                ({"sepc": {}}, "sepc"),
                ({"spec": []}, "spec"),
                ({"metadata": {"labels": {"visionrl.dev/component": "x"}}}, "metadata.labels"),
                ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy"),
                ({"spec": {"containers": [{"name": "trainer", "image": "x"}]}}, "spec.containers[0].image"),
                ({"spec": {"containers": [{"name": "trainer", "command": ["x"]}]}}, "spec.containers[0].command"),
                ({"spec": {"containers": [{"name": "proxy"}]}}, "spec.containers[0].image"),
                ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0].name"),
                ({"spec": {"volumes": [{"name": "key", "emptyDir": {}}]}}, "spec.volumes[0].name"),
                (
                    {"spec": {"containers": [{"name": "trainer", "env": [{"name": "API_KEY", "value": "x"}]}]}},
                    "spec.containers[0].env[0].value",
                ),
                (
                    {"spec": {"containers": [{"name": "trainer", "env": [{"name": "VISIONRL_JOB", "value": "x"}]}]}},
                    "spec.containers[0].env[0].name",
                ),
            )
        ),
        ({"overrides.taskApp": {"labels": {"visionrl.dev/job": "x"}}}, "spec.overrides.taskApp.labels"),
        (
            {"lifecycle": {"preRunningDeadlineSeconds": 9, "activeDeadlineSeconds": 5}},
            "spec.lifecycle.preRunningDeadlineSeconds",
        ),
    ],
)
def test_contradictions_name_the_field(change: dict[str, Any], path: str) -> None:
    assert path in [problem.path for problem in contradictions(job(change).spec)]


@pytest.mark.parametrize(
    ("model", "vision"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", True),
        ("gpt-4o-mini", True),
        ("google/gemma-3-4b-it", True),
        ("Qwen/Qwen3-4B", False),
        ("tiny", True),
    ],
)
def test_vision_is_known_by_the_models_name(model: str, vision: bool) -> None:
    assert uses_vision(job({"model.base": model}).spec) is vision


def test_explicit_settings_win_over_the_name() -> None:
    assert not uses_vision(job({"rollout.policyConfig": {"useVision": False}}).spec)
    assert uses_vision(job({"model": {"base": "my-model", "supportsVision": True}}).spec)


def test_likely_mistakes_are_warned_of() -> None:
    spec = job({"rollout.policyConfig": {"topP": 0.9}, "storage": {"ephemeral": True}}).spec
    assert [problem.path for problem in warnings(spec)] == ["spec.rollout.policyConfig.topP", "spec.storage.ephemeral"]


@given(first=st.integers(0, 999_999), episodes=st.integers(0, 2_000_000))
def test_evaluation_never_meets_training_seeds(first: int, episodes: int) -> None:
    spec = job({"evaluation": {"firstSeed": first, "episodes": episodes}}).spec
    if not contradictions(spec):
        assert all(seed < 1_000_000 for seed in (evaluation_seeds(spec)[-1:] or [0]))
