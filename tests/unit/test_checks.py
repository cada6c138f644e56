"""What a job must not say, and what it probably does not mean."""

from __future__ import annotations

import copy
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tests.support.jobs import document, job
from visionrl.checks import contradictions, warnings
from visionrl.checks.bases import base_fault, is_known_trainable
from visionrl.checks.context import BUILT_IN_PROMPT, longest_context, resized, shortest_context, visual_tokens
from visionrl.crafter import ACHIEVEMENTS
from visionrl.job import Job, JobSpec

QWEN = {"model.base": "Qwen/Qwen3-VL-4B-Instruct"}


def refused(changes: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a job, by path."""
    return {problem.path: problem.message for problem in contradictions(job(changes).spec)}


def warned(changes: dict[str, Any]) -> dict[str, str]:
    assert refused(changes) == {}
    return {problem.path: problem.message for problem in warnings(job(changes).spec)}


# --- reinforcement learning without chance


@pytest.mark.parametrize("temperature", [0.0, 0.005])
def test_training_needs_a_temperature(temperature: float) -> None:
    cold = {"rollout.policyConfig.temperature": temperature}
    assert "spec.rollout.policyConfig.temperature" in refused(cold)
    supervised = {"algorithm.type": "sft", "training.warmStart": {"episodes": 1, "steps": 1}}
    assert refused({**cold, **supervised}) == {}
    assert refused({"evaluation.temperature": 0.0}) == {}


def test_a_low_temperature_is_doubted() -> None:
    assert (
        "0.6 to 1 is usual"
        in warned({"rollout.policyConfig.temperature": 0.1})["spec.rollout.policyConfig.temperature"]
    )
    assert warned({"rollout.policyConfig.temperature": 0.6}) == {}


# --- a task app that runs elsewhere

ELSEWHERE = {"taskApp.url": "http://lamp.games.svc:8000", "taskApp.keySecret": {"name": "lamp", "key": "key"}}


def test_a_task_app_that_runs_elsewhere_has_nothing_to_start() -> None:
    assert refused(ELSEWHERE) == {}
    started = {
        "taskApp.image": "lamp:1",
        "taskApp.command": ["serve"],
        "taskApp.resources": {"cpu": "2"},
        "overrides.taskApp": {"labels": {"team": "games"}},
    }
    for path, value in started.items():
        assert "has no effect with url" in refused({**ELSEWHERE, path: value})[f"spec.{path}"]
    assert "only with url" in refused({"taskApp.keySecret": ELSEWHERE["taskApp.keySecret"]})["spec.taskApp.keySecret"]


@pytest.mark.parametrize(
    "url",
    ["lamp:8000", "ftp://lamp", "http://", "http://me:secret@lamp", "http://lamp?x=1", "http://lamp/#a", "file:///x"],
)
def test_the_url_of_a_task_app_is_a_plain_servers(url: str) -> None:
    with pytest.raises(ValidationError, match="a server's URL"):
        job({"taskApp.url": url})


def test_the_url_of_a_task_app_has_a_port_that_there_is() -> None:
    with pytest.raises(ValidationError, match="Port out of range"):
        job({"taskApp.url": "http://lamp:99999"})


# --- the context


def test_frames_that_alone_exceed_the_context_are_refused() -> None:
    found = refused(
        {
            **QWEN,
            "inference.vllm": {"maxModelLen": 4096, "limitMmPerPrompt": {"image": 8}},
            "rollout.envConfig.imageSize": 1024,
            "rollout.policyConfig": {"segmentTurns": 8, "maxTokens": 512},
        }
    )
    assert "8 × 1024 for frames" in found["spec.inference.vllm.maxModelLen"]


def test_the_shipped_4b_context_is_that_of_qwens_tokenizer() -> None:
    """Counted with Qwen3's byte-pair ranks and chat template: 816 + 277 for prompt and tool, 81 for the frame."""
    first = shortest_context(job({**QWEN, "rollout.policyConfig": {"historyTurns": 0}, "rollout.envConfig": {}}).spec)
    assert first.prompt == 1104 - 1 + 81
    second = shortest_context(job({**QWEN, "rollout.policyConfig": {"historyTurns": 1}, "rollout.envConfig": {}}).spec)
    assert second.prompt - first.prompt == 35
    segment = {"segmentTurns": 2, "historyTurns": 0}
    grown = shortest_context(job({**QWEN, "rollout.policyConfig": segment, "rollout.envConfig": {}}).spec)
    assert grown.prompt - first.prompt == 34 - 1 + 81


def test_the_built_in_prompt_is_still_the_one_that_was_counted() -> None:
    from visionrl_taskapp.envs.crafter.prompt import system_prompt
    from visionrl_taskapp.envs.protocol import PromptStyle

    characters = len(system_prompt(PromptStyle(frames=True, max_actions=5, segment_turns=1)))
    assert abs(characters / BUILT_IN_PROMPT / 3.69 - 1) < 0.05, "count its tokens anew (visionrl/checks/context.py)"


def test_long_answers_in_a_segment_are_warned_of() -> None:
    policy = {"segmentTurns": 4, "maxTokens": 1024}
    changes = {
        **QWEN,
        "rollout.policyConfig": policy,
        "rollout.envConfig": {},
        "inference.vllm.limitMmPerPrompt.image": 4,
    }
    assert "may be too small" in warned(changes)["spec.inference.vllm.maxModelLen"]
    assert "spec.inference.vllm.maxModelLen" not in warned({**changes, "inference.vllm.maxModelLen": 8192})


@given(
    turns=st.integers(1, 64),
    history=st.integers(0, 64),
    calls=st.integers(1, 100),
    tokens=st.integers(30, 2000),
    prompt=st.none() | st.text(max_size=500),
)
def test_the_estimates_are_in_order(turns: int, history: int, calls: int, tokens: int, prompt: str | None) -> None:
    policy = {"segmentTurns": turns, "historyTurns": history, "maxLlmCalls": calls, "maxTokens": tokens}
    spec = job({**QWEN, "rollout.policyConfig": {**policy, "systemPrompt": prompt}}).spec
    assert 0 < shortest_context(spec).total <= longest_context(spec).total


@pytest.mark.parametrize(("side", "to"), [(63, 256), (250, 256), (256, 256), (288, 288), (300, 288), (1024, 1024)])
def test_frames_are_scaled_to_cells_of_32_pixels(side: int, to: int) -> None:
    assert resized(side) == to
    assert visual_tokens(job({**QWEN, "rollout.envConfig.imageSize": side}).spec) == (to // 32) ** 2
    blurred = "spec.rollout.envConfig.imageSize" in warned({**QWEN, "rollout.envConfig.imageSize": side})
    assert blurred is (side != to)
    folder = {**QWEN, "model.base": "/models/one", "model.supportsVision": True, "rollout.envConfig.imageSize": side}
    assert "spec.rollout.envConfig.imageSize" not in warned(folder)


# --- the base model


@pytest.mark.parametrize(
    ("base", "trainable"),
    [
        ("tiny", True),
        ("Qwen/Qwen3-VL-4B-Instruct", True),
        ("acme/llava-data-qwen3vl-8b", True),
        ("Qwen/Qwen2.5-VL-3B-Instruct", False),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", False),
        ("Qwen/Qwen3-4B", False),
        ("gpt-4o-mini", False),
        ("llava-hf/llava-1.5-7b-hf", False),
        ("google/gemma-3-4b-it", False),
        ("meta-llama/Llama-3.2-11B-Vision", False),
        ("acme/crafter-player", None),
        ("/models/llama", None),
    ],
)
def test_a_base_that_cannot_be_trained_is_told_by_its_name(base: str, trainable: bool | None) -> None:
    assert (base_fault(base) is None) is (trainable is not False)
    assert is_known_trainable(base) is (trainable is True)


def test_a_name_that_says_nothing_is_warned_of() -> None:
    assert "Qwen3-VL alone" in warned({"model": {"base": "acme/player", "supportsVision": True}})["spec.model.base"]
    assert warned({"model": {"base": "/models/player", "supportsVision": True}, "rollout.envConfig": {}}) == {}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["qkv"], "[0]: 'qkv' is no linear layer"),
        (["q_proj", "mm_projector"], "[1]: 'mm_projector' is no linear layer"),
        (["q_prj"], "[0]: 'q_prj' is no linear layer that adapters are served on; did you mean q_proj?"),
        (["q_proj", "q_proj"], "[1]: q_proj is named twice"),
        (["all-linear"], ": write all-linear as a word"),
    ],
)
def test_layers_that_no_adapter_is_served_on_are_refused(modules: list[str], message: str) -> None:
    [found] = [str(problem) for problem in contradictions(job({"model.lora.targetModules": modules}).spec)]
    assert found.startswith(f"spec.model.lora.targetModules{message}")
    assert refused({"model.lora.targetModules": ["q_proj", "v_proj"]}) == {}


# --- rewards


def test_the_achievements_are_those_of_the_game() -> None:
    from visionrl_taskapp.envs.crafter import rules

    assert ACHIEVEMENTS == rules.ACHIEVEMENTS


def test_a_weight_is_of_an_achievement() -> None:
    wrong = {"stepRewards": "per_achievement", "weights": {"colect_wood": 5.0}}
    assert (
        "did you mean collect_wood?"
        in refused({"training.rewards": wrong})["spec.training.rewards.weights.colect_wood"]
    )


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0])
def test_a_weight_is_a_finite_number_from_0_on(weight: float) -> None:
    with pytest.raises(ValidationError):
        job({"training.rewards": {"stepRewards": "per_achievement", "weights": {"collect_wood": weight}}})


# --- without effect


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"training.groupSize": 4}, "spec.training.groupSize"),
        ({"algorithm.loss": "grpo"}, "spec.algorithm.loss"),
        ({"training.guards": {"patience": 2}}, "spec.training.guards"),
        ({"training.rewards": {"invalidPenalty": 0.5}}, "spec.training.rewards"),
        ({"model.lora.r": 8}, "spec.model.lora.r"),
    ],
)
def test_fields_of_reinforcement_learning_are_doubted_in_supervised_jobs(changes: dict[str, Any], path: str) -> None:
    supervised = {"algorithm": {"type": "sft"}, "training.warmStart": {"episodes": 1, "steps": 1}}
    assert warned(supervised) == {}
    assert "has no effect with algorithm.type sft" in warned({**supervised, **changes})[path]
    assert path not in warned(changes)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"training.warmStart": {"steps": 1, "data": {"train": "/t"}, "turns": 9}}, "spec.training.warmStart.turns"),
        ({"evaluation": {"episodes": 0, "everyIterations": 2}}, "spec.evaluation.everyIterations"),
        ({"training.rewards": {"stepLambda": 0.5}}, "spec.training.rewards.stepLambda"),
        ({"inference.vllm.maxNumSeqs": 4}, "spec.inference.vllm.maxNumSeqs"),
        ({"inference.vllm.gpuMemoryUtilization": 0.5}, "spec.inference.vllm.gpuMemoryUtilization"),
        ({"inference.vllm.enforceEager": True}, "spec.inference.vllm.enforceEager"),
        ({"inference.gpu": {}, "inference.vllm.cpuKvCacheGib": 4}, "spec.inference.vllm.cpuKvCacheGib"),
        ({"training.checkpointEvery": 5}, "spec.training.checkpointEvery"),
        ({"rollout.policyConfig.segmentTurns": 20, "inference.vllm.limitMmPerPrompt.image": 20,
          "inference.vllm.maxModelLen": 16384}, "spec.rollout.policyConfig.segmentTurns"),
    ],
)  # fmt: skip
def test_fields_without_effect_are_doubted(changes: dict[str, Any], path: str) -> None:
    assert list(warned(changes)) == [path]


# --- what Kubernetes refuses


@pytest.mark.parametrize(
    "changes",
    [
        {"storage.runClaim": "../../etc"},
        {"storage.modelCacheClaim": "a_b"},
        {"storage": {"runSize": "1Gi", "storageClassName": "Fast"}},
        {"queueName": ""},
        {"queueName": "q\nx: y"},
        {"queueName": "q" * 64},
        {"trainer.image": "evil\n  privileged: true"},
        {"trainer.gpu": {"resourceName": "a b"}},
        {"trainer.gpu": {"runtimeClassName": "A"}},
        {"trainer.gpu": {"productLabel": "a/b/c"}},
        {"trainer.gpu": {"products": ["a b"]}},
        {"trainer.gpu": {"tolerations": [{"key": "-"}]}},
        {"placement.nodeSelector": {"a b": "c"}},
        {"placement.nodeSelector": {"a": "c d"}},
        {"overrides.trainer": {"labels": {"a": "x" * 64}}},
        {"overrides.trainer": {"annotations": {"": ""}}},
        {"overrides.trainer": {"serviceAccountName": "a b"}},
        {"overrides.trainer": {"imagePullSecrets": ["A"]}},
        {"overrides.trainer": {"priorityClassName": ""}},
        {"trainer.resources": {"memory": "1" * 40}},
    ],
)
def test_names_that_kubernetes_refuses_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be"):
        job(changes)


@pytest.mark.parametrize("metadata", [{"labels": {"a b": "x"}}, {"labels": {"a": "x\ny"}}, {"annotations": {"": ""}}])
def test_so_are_those_of_the_object_itself(metadata: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be a label"):
        Job.model_validate({**document(), "metadata": {"name": "demo", **metadata}})


def test_names_that_kubernetes_takes_are_taken() -> None:
    job(
        {
            "placement.nodeSelector": {"node-role.kubernetes.io/control-plane": "", "a_B.c": "x_y.Z"},
            "overrides.trainer": {"annotations": {"a/b": "any text\nof any length"}, "serviceAccountName": "a.b-c"},
            "trainer.image": "registry.example:5000/a_b/c:1.0@sha256:00",
            "trainer.gpu": {"products": ["NVIDIA-H200"]},
        }
    )


# --- numbers


def numbers(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type]]:
    """Paths of all numeric fields, and their types."""
    for name, field in model.model_fields.items():
        here, pending = f"{path}.{field.alias or name}".lstrip("."), [field.annotation]
        while pending:
            found = pending.pop()
            if isinstance(found, type) and issubclass(found, BaseModel):
                yield from numbers(found, here)
            elif found in (int, float):
                yield here, typing.cast(type, found)
            elif typing.get_origin(found) is dict:
                here, pending = f"{here}.name", [typing.get_args(found)[1]]
            elif typing.get_origin(found) is not list:
                pending += typing.get_args(found)


NUMBERS = [(path, kind) for path, kind in numbers(JobSpec)]
OPTIONAL = {"inference.gpu": {}, "trainer.gpu": {}, "model.tiny": {}, "training.warmStart": {"episodes": 1, "steps": 1}}


def test_every_number_is_tried() -> None:
    assert len(NUMBERS) > 70


@pytest.mark.parametrize(("path", "kind"), NUMBERS, ids=[path for path, _ in NUMBERS])
def test_no_number_is_endless(path: str, kind: type) -> None:
    values = [math.nan, math.inf, -math.inf] if kind is float else [2**63, 10**30, -(2**63) - 1]
    for value in [*values, "1", True]:
        with pytest.raises(ValidationError) as refused_number:
            Job.model_validate(document({**copy.deepcopy(OPTIONAL), path: value}), by_alias=True, by_name=False)
        assert {".".join(map(str, error["loc"])) for error in refused_number.value.errors()} == {f"spec.{path}"}


@pytest.mark.parametrize(
    "path", [path for path, _ in NUMBERS if path.lower().endswith(("seconds", "times", "timeouts"))]
)
def test_no_time_ends_after_the_calendar(path: str) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate(document({path: 10**10}), by_alias=True, by_name=False)
