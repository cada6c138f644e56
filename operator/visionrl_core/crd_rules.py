"""CEL rules of the CRD: what cannot change once a job was accepted, and the contradictions of ``visionrl.checks`` that
CEL can say. They only answer earlier: the operator runs all checks on every object.

Sections with defaults are always present, because the API server fills defaults in before it evaluates rules; of
other fields ``has`` is asked first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from visionrl.checks import MIN_SAMPLING_TEMPERATURE, NOT_WITH_A_CLAIM, RESERVED_ENV
from visionrl.job import FIRST_TRAINING_SEED, Gpu
from visionrl_core.mutability import MUTABLE_PATHS

Schema = dict[str, Any]

ACCEPTED = (
    "has(oldSelf.status) && has(oldSelf.status.conditions) && "
    "oldSelf.status.conditions.exists(c, c.type == 'Accepted' && c.status == 'True')"
)

# (rule on spec, path below spec, message)
CONTRADICTIONS = (
    (
        "self.algorithm.type != 'sft' || has(self.training.warmStart)",
        "training.warmStart",
        "required with algorithm.type sft",
    ),
    (
        "self.algorithm.type != 'rl' || self.training.groupSize >= 2",
        "training.groupSize",
        "must be at least 2: an advantage compares an episode with the others of its group",
    ),
    (
        f"self.algorithm.type != 'rl' || self.rollout.policyConfig.temperature >= {MIN_SAMPLING_TEMPERATURE}",
        "rollout.policyConfig.temperature",
        f"must be at least {MIN_SAMPLING_TEMPERATURE} for reinforcement learning: at 0 all episodes of a group are the "
        "same and teach nothing; evaluation.temperature may be 0",
    ),
    (
        "self.algorithm.advantage != 'outcome' || self.algorithm.gamma == 1.0",
        "algorithm.gamma",
        "has no effect with advantage outcome; remove it or use advantage turn",
    ),
    (
        "!has(self.algorithm.clipLow) || !has(self.algorithm.clipHigh) "
        "|| self.algorithm.clipHigh >= self.algorithm.clipLow",
        "algorithm.clipHigh",
        "must not be below clipLow",
    ),
    ("!has(self.model.tiny) || self.model.base == 'tiny'", "model.tiny", "only with base tiny"),
    (
        "!has(self.model.revision) || self.model.base != 'tiny'",
        "model.revision",
        "has no meaning with base tiny",
    ),
    (
        "!has(self.model.tiny) || self.model.tiny.hiddenSize % (2 * self.model.tiny.heads) == 0",
        "model.tiny.hiddenSize",
        "must be a multiple of 2 × heads",
    ),
    (
        "!has(self.model.tiny) || self.model.tiny.visionHiddenSize % 32 == 0",
        "model.tiny.visionHiddenSize",
        "must be a multiple of 32 (the width of a head)",
    ),
    (
        "!has(self.training.warmStart) || self.training.warmStart.trains == 'adapter' || self.model.base == 'tiny'",
        "training.warmStart.trains",
        "a new base model is offered for base tiny only; set trains to adapter, or model.base to tiny",
    ),
    (
        "!has(self.training.warmStart) || has(self.training.warmStart.episodes) || has(self.training.warmStart.data)",
        "training.warmStart.episodes",
        "required, unless data names files",
    ),
    (
        "!has(self.training.warmStart) || !has(self.training.warmStart.episodes) || !has(self.training.warmStart.data)",
        "training.warmStart.data",
        "contradicts episodes: imitate files or the scripted player, not both",
    ),
    (
        "!has(self.training.warmStart) || !has(self.training.warmStart.untilLoss) "
        "|| (has(self.training.warmStart.data) ? has(self.training.warmStart.data.val) "
        ": !has(self.training.warmStart.episodes) || self.training.warmStart.episodes > 1)",
        "training.warmStart.untilLoss",
        "is measured on held-out decisions, and there are none: name data.val, or at least 2 episodes",
    ),
    (
        "!has(self.training.warmStart) || !has(self.training.warmStart.data) "
        "|| self.training.warmStart.data.train.startsWith('/')",
        "training.warmStart.data.train",
        "must be an absolute path: the file is read in the trainer's pod",
    ),
    (
        "!has(self.training.warmStart) || !has(self.training.warmStart.data) "
        "|| !has(self.training.warmStart.data.val) || self.training.warmStart.data.val.startsWith('/')",
        "training.warmStart.data.val",
        "must be an absolute path: the file is read in the trainer's pod",
    ),
    (
        "!has(self.rollout.policyConfig.useVision) || !self.rollout.policyConfig.useVision "
        "|| !has(self.model.supportsVision) || self.model.supportsVision",
        "rollout.policyConfig.useVision",
        "is true, but model.supportsVision is false",
    ),
    (
        "self.model.base != 'tiny' || self.rollout.envConfig.imageSize "
        "% (16 * (has(self.model.tiny) ? self.model.tiny.spatialMergeSize : 1)) == 0",
        "rollout.envConfig.imageSize",
        "must be a multiple of the tiny model's patches (16 px, times spatialMergeSize)",
    ),
    (
        "!has(self.inference.gpu) || self.inference.gpu.count == self.inference.vllm.tensorParallelSize",
        "inference.gpu.count",
        "must equal vllm.tensorParallelSize: one server uses exactly its GPUs",
    ),
    (
        "has(self.inference.gpu) || self.inference.vllm.tensorParallelSize == 1",
        "inference.vllm.tensorParallelSize",
        "above 1 needs inference.gpu",
    ),
    (
        "!has(self.trainer.gpu) || self.trainer.gpu.count == 1",
        "trainer.gpu.count",
        "must be 1: the trainer does not split a model over GPUs yet",
    ),
    *(
        (
            f"!has(self.{part}.gpu) || !has(self.{part}.gpu.resourceClaim) || self.{part}.gpu.{name} == '{default}'",
            f"{part}.gpu.{name}",
            NOT_WITH_A_CLAIM,
        )
        for part in ("inference", "trainer")
        for name, default in (("resourceName", Gpu().resource_name), ("productLabel", Gpu().product_label))
    ),
    (
        "self.rollout.policyConfig.maxTokens < self.inference.vllm.maxModelLen",
        "rollout.policyConfig.maxTokens",
        "leaves no room for the prompt: must be below inference.vllm.maxModelLen",
    ),
    (
        "self.rollout.maxOps > self.rollout.policyConfig.maxActions",
        "rollout.maxOps",
        "must be at least one turn with its actions: policyConfig.maxActions + 1",
    ),
    (
        "self.rollout.policyConfig.turnTimeoutS <= self.rollout.maxTimeS",
        "rollout.policyConfig.turnTimeoutS",
        "must not exceed rollout.maxTimeS",
    ),
    (
        "size(self.training.rewards.weights) == 0 || self.training.rewards.stepRewards == 'per_achievement'",
        "training.rewards.weights",
        "only with stepRewards per_achievement",
    ),
    (
        "self.training.updatesPerIteration <= self.training.groupsPerIteration * self.training.groupSize "
        "* self.rollout.policyConfig.maxLlmCalls",
        "training.updatesPerIteration",
        "exceeds the decisions of an iteration",
    ),
    (
        f"self.evaluation.firstSeed + self.evaluation.episodes <= {FIRST_TRAINING_SEED}",
        "evaluation.episodes",
        f"seeds must stay below {FIRST_TRAINING_SEED}: training's begin there",
    ),
    (
        "!has(self.storage.runClaim) || !has(self.storage.runSize)",
        "storage.runSize",
        "contradicts runClaim: name an existing claim or have one made",
    ),
    (
        "!has(self.storage.storageClassName) || !(has(self.storage.runClaim) || self.storage.ephemeral)",
        "storage.storageClassName",
        "has no effect: it is of the claim that the operator makes",
    ),
    (
        "!self.storage.ephemeral || !(has(self.storage.runClaim) || has(self.storage.runSize))",
        "storage.ephemeral",
        "contradicts runClaim and runSize, which keep the run folder",
    ),
    (
        "!has(self.storage.export) || !self.storage.ephemeral",
        "storage.export",
        "needs the run folder's claim, which storage.ephemeral does without",
    ),
    (
        "!has(self.storage.export) || has(self.storage.export.adapter) || has(self.storage.export.mergedModel)",
        "storage.export.adapter",
        "required, unless mergedModel is given",
    ),
    (
        "!has(self.storage.export) || !has(self.storage.export.adapter) || !has(self.storage.export.mergedModel) "
        "|| self.storage.export.adapter != self.storage.export.mergedModel",
        "storage.export.mergedModel",
        "must be another place than adapter's: files of one name would collide",
    ),
    (
        "!(has(self.storage.runClaim) || self.storage.ephemeral) "
        "|| (self.storage.retention.whenDeleted == 'Retain' && self.storage.retention.whenFinished == 'Retain')",
        "storage.retention",
        "has no effect: it is of the claim that the operator makes",
    ),
    (
        "!has(self.lifecycle.preRunningDeadlineSeconds) || !has(self.lifecycle.activeDeadlineSeconds) "
        "|| self.lifecycle.preRunningDeadlineSeconds <= self.lifecycle.activeDeadlineSeconds",
        "lifecycle.preRunningDeadlineSeconds",
        "exceeds activeDeadlineSeconds",
    ),
    (
        "self.placement.topology != 'SameNode' || has(self.inference.gpu) == has(self.trainer.gpu)",
        "placement.topology",
        "SameNode needs gpu on both inference and trainer, or on neither",
    ),
    ("!has(self.queuePriorityClass) || has(self.queueName)", "queuePriorityClass", "needs queueName"),
)

FAILURE_RULE = {
    "rule": "has(self.component) || size(self.exitCodes) > 0 || size(self.reasons) > 0",
    "message": "matches everything: name a component, exitCodes or reasons",
}
RESERVED_NAME = {
    "rule": f"!self.startsWith('{RESERVED_ENV}')",
    "message": f"variables that begin with {RESERVED_ENV} are set by the operator",
}
# Bounds that the API server needs to estimate what a rule costs.
MAX_ITEMS, MAX_NAME = 128, 256


def add(root: Schema) -> None:
    """Put the rules into the schema of the whole object."""
    spec = root["properties"]["spec"]
    root["x-kubernetes-validations"] = [
        {
            "rule": f"!({ACCEPTED}) || ({unchanged})",
            "message": f"spec.{path} cannot change after the job was accepted; may change: {', '.join(MUTABLE_PATHS)}",
        }
        for path, unchanged in _immutable(spec, "")
    ]
    spec["x-kubernetes-validations"] = [
        {"rule": rule, "message": f"spec.{path}: {message}"} for rule, path, message in CONTRADICTIONS
    ]
    rules = spec["properties"]["failurePolicy"]["properties"]["rules"]["items"]
    rules["x-kubernetes-validations"] = [FAILURE_RULE]
    for name in ("exitCodes", "reasons"):
        rules["properties"][name]["maxItems"] = MAX_ITEMS
    for patch in spec["properties"]["overrides"]["properties"].values():
        variables = patch["properties"]["env"]
        variables["maxItems"] = MAX_ITEMS
        name = variables["items"]["properties"]["name"]
        name |= {"maxLength": MAX_NAME, "x-kubernetes-validations": [RESERVED_NAME]}


def _immutable(schema: Schema, prefix: str) -> Iterator[tuple[str, str]]:
    """(path below spec, expression that holds while it is unchanged); sections that hold something changeable are
    taken apart."""
    for name, field in schema["properties"].items():
        path = f"{prefix}{name}"
        if path in MUTABLE_PATHS:
            continue
        if any(mutable.startswith(f"{path}.") for mutable in MUTABLE_PATHS):
            yield from _immutable(field, f"{path}.")
        else:
            yield path, _same(path, optional="default" not in field and name not in schema.get("required", ()))


def _same(path: str, optional: bool) -> str:
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    if not optional:
        return f"{new} == {old}"
    return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
