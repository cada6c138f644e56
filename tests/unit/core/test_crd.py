"""The custom resource: generated, complete, and in agreement with the operator's own checks."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import pytest
from ruamel.yaml import YAML

from tests.support.jobs import document
from visionrl.job import JobSpec
from visionrl_core import crd_rules
from visionrl_core.crd import MAX_BYTES, crd, yaml_text
from visionrl_core.mutability import MUTABLE_PATHS
from visionrl_core.policies.validation import parse

FILE = Path(__file__).parents[3] / "crds" / "visionrl.dev_visionrljobs.yaml"
Schema = dict[str, Any]


def root(with_cel: bool = True) -> Schema:
    return crd(with_cel)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from fields(schema[inner], f"{path}[]")


def test_the_file_is_the_generated_one() -> None:
    assert FILE.read_text() == yaml_text(), "run `make crds`"


def test_it_can_be_applied_by_plain_kubectl() -> None:
    """Which keeps the object as JSON without white space in an annotation."""
    assert len(json.dumps(crd(), separators=(",", ":")).encode()) < MAX_BYTES / 2
    assert len(FILE.read_bytes()) < MAX_BYTES


def test_a_yaml_1_1_reader_such_as_kubectl_reads_the_same() -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    assert yaml.load(FILE.read_text()) == crd()


def test_every_field_has_a_type_and_a_description() -> None:
    for path, field in fields({"properties": {"s": root()["properties"]["spec"], "t": root()["properties"]["status"]}}):
        assert field.get("description"), path
        assert "type" in field or field.get("x-kubernetes-preserve-unknown-fields"), path
        assert not {"$ref", "anyOf", "allOf", "title"} & field.keys(), path


def test_enums_bounds_and_defaults_are_there() -> None:
    spec = root()["properties"]["spec"]["properties"]
    assert spec["algorithm"]["properties"]["loss"]["enum"] == ["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
    assert spec["training"]["properties"]["groupSize"]["minimum"] == 1
    assert spec["training"]["properties"]["groupSize"]["default"] == 8
    assert spec["inference"]["default"] == {}
    assert spec["inference"]["properties"]["resources"]["default"] == {"cpu": "4", "memory": "32Gi"}
    learning_rate = spec["training"]["properties"]["learningRate"]
    assert learning_rate["minimum"] == 0
    assert learning_rate["exclusiveMinimum"] is True
    assert root()["properties"]["metadata"]["properties"]["name"]["maxLength"] == 45


def test_null_is_possible_where_it_is_not_the_default() -> None:
    spec = root()["properties"]["spec"]
    nullable = {path for path, field in fields(spec) if field.get("nullable")}
    guards = {"maxMismatchKL", "maxInvalidRate", "maxRejectedRate"}
    assert nullable == {f".training.guards.{name}" for name in guards}


def test_the_printer_columns() -> None:
    version = crd()["spec"]["versions"][0]
    columns = version["additionalPrinterColumns"]
    narrow = [column["name"] for column in columns if not column.get("priority")]
    assert narrow == ["Phase", "Iter", "Reward", "Ep/min", "Policy", "Reason", "Age"]
    assert [column["name"] for column in columns if column.get("priority")] == ["Nodes", "Queue", "Restarts"]
    assert version["subresources"] == {"status": {}}
    known = {path for path, _ in fields(root())}
    for column in columns:
        if column["name"] != "Age":
            assert column["jsonPath"].replace("[*]", "[]") in known


def test_conditions_are_a_map_by_type() -> None:
    conditions = root()["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_the_variant_for_old_servers_has_no_rules() -> None:
    assert "x-kubernetes-validations" in yaml_text()
    assert "x-kubernetes-validations" not in yaml_text(cel=False)


# --- the rules, evaluated


def filled(changes: dict[str, Any]) -> Schema:
    """A spec with the defaults that the API server fills in, whether it is valid or not."""
    spec = copy.deepcopy(document(changes)["spec"])
    _fill(spec, root()["properties"]["spec"])
    return spec


def _fill(value: Schema, schema: Schema) -> None:
    for name, field in schema.get("properties", {}).items():
        if name not in value and "default" in field:
            value[name] = copy.deepcopy(field["default"])
        if isinstance(value.get(name), dict):
            _fill(value[name], field)
        for item in value.get(name, []) if isinstance(value.get(name), list) else []:
            if isinstance(item, dict):
                _fill(item, field["items"])


def test_defaults_filled_in_by_the_server_are_those_of_the_model() -> None:
    assert JobSpec.model_validate(filled({}), by_alias=True, by_name=False) == JobSpec.model_validate(
        document()["spec"], by_alias=True, by_name=False
    )


def violations(spec: Schema) -> set[str]:
    """Messages of the rules that a spec breaks."""
    rules = root()["properties"]["spec"]["x-kubernetes-validations"]
    return {rule["message"] for rule in rules if not cel.evaluate(rule["rule"], {"self": spec})}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"algorithm.type": "sft"}, "training.warmStart"),
    ({"training.groupSize": 1}, "training.groupSize"),
    ({"rollout.policyConfig.temperature": 0.0}, "rollout.policyConfig.temperature"),
    ({"rollout.policyConfig.temperature": 0.005}, "rollout.policyConfig.temperature"),
    ({"algorithm.gamma": 0.9}, "algorithm.gamma"),
    ({"algorithm.clipLow": 0.3, "algorithm.clipHigh": 0.2}, "algorithm.clipHigh"),
    ({"model.base": "Qwen/Qwen3-VL-4B-Instruct", "model.tiny": {}}, "model.tiny"),
    ({"model.revision": "main"}, "model.revision"),
    ({"model.tiny": {"hiddenSize": 36}}, "model.tiny.hiddenSize"),
    ({"model.tiny": {"visionHiddenSize": 48}}, "model.tiny.visionHiddenSize"),
    (
        {"model.base": "Qwen/Qwen3-VL-4B-Instruct", "training.warmStart": {"episodes": 1, "steps": 1}},
        "training.warmStart.trains",
    ),
    ({"training.warmStart": {"steps": 1}}, "training.warmStart.episodes"),
    ({"training.warmStart": {"steps": 1, "episodes": 1, "data": {"train": "/t"}}}, "training.warmStart.data"),
    ({"training.warmStart": {"steps": 1, "episodes": 1, "untilLoss": 2.0}}, "training.warmStart.untilLoss"),
    (
        {"training.warmStart": {"steps": 1, "data": {"train": "/t"}, "untilLoss": 2.0}},
        "training.warmStart.untilLoss",
    ),
    ({"training.warmStart": {"steps": 1, "data": {"train": "t"}}}, "training.warmStart.data.train"),
    ({"training.warmStart": {"steps": 1, "data": {"train": "/t", "val": "v"}}}, "training.warmStart.data.val"),
    ({"rollout.policyConfig.useVision": True, "model.supportsVision": False}, "rollout.policyConfig.useVision"),
    ({"rollout.envConfig.imageSize": 150}, "rollout.envConfig.imageSize"),
    ({"inference.gpu": {"count": 2}}, "inference.gpu.count"),
    ({"inference.vllm.tensorParallelSize": 2}, "inference.vllm.tensorParallelSize"),
    ({"trainer.gpu": {"count": 2}}, "trainer.gpu.count"),
    *(
        ({f"{part}.gpu": {"resourceClaim": {}, name: "example.com/gpu"}}, f"{part}.gpu.{name}")
        for part in ("inference", "trainer")
        for name in ("resourceName", "productLabel")
    ),
    ({"rollout.policyConfig.maxTokens": 4096}, "rollout.policyConfig.maxTokens"),
    ({"rollout.maxOps": 5}, "rollout.maxOps"),
    ({"rollout.maxTimeS": 60.0}, "rollout.policyConfig.turnTimeoutS"),
    ({"training.rewards.weights": {"collect_wood": 1.0}}, "training.rewards.weights"),
    ({"training.updatesPerIteration": 1000}, "training.updatesPerIteration"),
    ({"evaluation.firstSeed": 999_999}, "evaluation.episodes"),
    ({"storage.runClaim": "a", "storage.runSize": "1Gi"}, "storage.runSize"),
    ({"storage.storageClassName": "fast", "storage.runClaim": "mine"}, "storage.storageClassName"),
    ({"storage.ephemeral": True, "storage.runSize": "1Gi"}, "storage.ephemeral"),
    ({"storage.ephemeral": True, "storage.export": {"adapter": "s3://bucket/crafter"}}, "storage.export"),
    ({"storage.export": {"secretName": "keys"}}, "storage.export.adapter"),
    ({"storage.export": {"adapter": "s3://b/c", "mergedModel": "s3://b/c"}}, "storage.export.mergedModel"),
    ({"storage.ephemeral": True, "storage.retention": {"whenFinished": "Delete"}}, "storage.retention"),
    (
        {"lifecycle.preRunningDeadlineSeconds": 20, "lifecycle.activeDeadlineSeconds": 10},
        "lifecycle.preRunningDeadlineSeconds",
    ),
    ({"placement.topology": "SameNode", "trainer.gpu": {}}, "placement.topology"),
    ({"queuePriorityClass": "high"}, "queuePriorityClass"),
]


@pytest.mark.parametrize(("changes", "path"), BROKEN, ids=[f"{index}-{path}" for index, (_, path) in enumerate(BROKEN)])
def test_a_contradiction_is_refused_by_rule_and_by_operator(changes: dict[str, Any], path: str) -> None:
    assert any(message.startswith(f"spec.{path}: ") for message in violations(filled(changes)))
    job, problems, _ = parse(document(changes))
    assert job is None
    assert f"spec.{path}" in {problem.path for problem in problems}


def test_every_contradiction_rule_is_tried() -> None:
    assert {path for _, path, _ in crd_rules.CONTRADICTIONS} == {path for _, path in BROKEN}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm.type": "sft", "training.warmStart": {"episodes": 1, "steps": 1}},
        {"training.warmStart": {"steps": 1, "data": {"train": "/data/train.jsonl"}}},
        {"training.warmStart": {"steps": 1, "data": {"train": "/train.jsonl", "val": "/val.jsonl"}, "untilLoss": 2.0}},
        {"training.warmStart": {"steps": 1, "episodes": 2, "untilLoss": 2.0}},
        {"model.tiny": {}, "inference.gpu": {}, "trainer.gpu": {}, "placement.topology": "SameNode"},
        {"algorithm.advantage": "turn", "algorithm.gamma": 0.9, "storage.runSize": "1Gi"},
        {"inference.gpu": {"resourceClaim": {}}, "trainer.gpu": {"resourceClaim": {"deviceClass": "h200"}}},
    ],
)
def test_a_valid_job_breaks_no_rule(changes: dict[str, Any]) -> None:
    assert violations(filled(changes)) == set()


def refused_changes(old: Schema, new: Schema, status: Schema | None) -> list[str]:
    """Messages of the rules on the whole object for an update."""
    extra = {} if status is None else {"status": status}
    context = {"self": {"spec": new, **extra}, "oldSelf": {"spec": old, **extra}}
    rules = root()["x-kubernetes-validations"]
    return [rule["message"] for rule in rules if not cel.evaluate(rule["rule"], context)]


ACCEPTED = {"conditions": [{"type": "Accepted", "status": "True"}]}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"model.base": "other"}, "spec.model"),
        ({"training.groupSize": 4}, "spec.training.groupSize"),
        ({"training.warmStart": {"episodes": 1, "steps": 1}}, "spec.training.warmStart"),
        ({"queueName": "gpus"}, "spec.queueName"),
        ({"taskApp.image": "other"}, "spec.taskApp.image"),
        ({"overrides.trainer.labels": {"a": "b"}}, "spec.overrides"),
    ],
)
def test_what_is_fixed_cannot_change_once_accepted(change: dict[str, Any], path: str) -> None:
    refused = refused_changes(filled({}), filled(change), ACCEPTED)
    assert [message.split(" ")[0] for message in refused] == [path]
    assert all(mutable in refused[0] for mutable in MUTABLE_PATHS)


@pytest.mark.parametrize("status", [None, {}, {"conditions": [{"type": "Accepted", "status": "False"}]}])
def test_a_job_that_was_not_accepted_can_be_mended(status: Schema | None) -> None:
    assert refused_changes(filled({}), filled({"model.base": "other"}), status) == []


def test_what_may_change_may_change() -> None:
    change = {
        "training.iterations": 50,
        "evaluation.episodes": 3,
        "lifecycle.activeDeadlineSeconds": 60,
        "failurePolicy.maxRestarts": 9,
        "suspend": True,
        "taskApp.resources": {"cpu": "2"},
    }
    assert refused_changes(filled({}), filled(change), ACCEPTED) == []


def test_rules_on_items() -> None:
    assert not cel.evaluate(
        crd_rules.FAILURE_RULE["rule"], {"self": {"action": "Fail", "exitCodes": [], "reasons": []}}
    )
    assert cel.evaluate(crd_rules.FAILURE_RULE["rule"], {"self": {"action": "Fail", "exitCodes": [3], "reasons": []}})
    assert not cel.evaluate(crd_rules.RESERVED_NAME["rule"], {"self": "VISIONRL_JOB"})
    assert cel.evaluate(crd_rules.RESERVED_NAME["rule"], {"self": "HF_HOME"})
