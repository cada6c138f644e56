"""What contradicts itself in a job: rules that span several fields, or that a schema cannot say.

The operator runs the same rules on every object that it sees, so an API server without CEL validation loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeAlias, cast

from pydantic.alias_generators import to_camel

from visionrl.checks import pod_templates
from visionrl.checks.bases import base_fault
from visionrl.checks.context import shortest_context
from visionrl.checks.derived import evaluation_seeds, exports_base, runs_inference, uses_vision
from visionrl.checks.pod_templates import RESERVED_ENV
from visionrl.checks.reads import Reads
from visionrl.crafter import ACHIEVEMENTS
from visionrl.job import (
    DEFAULT_ENVIRONMENT,
    FIRST_TRAINING_SEED,
    LINEAR_LAYERS,
    EnvSettings,
    Export,
    Gpu,
    JobSpec,
    PodPatch,
    Resources,
)
from visionrl.problems import Problem, nearest, shown, unknown_key

Check: TypeAlias = Callable[[JobSpec], Iterator[Problem]]

MIN_SAMPLING_TEMPERATURE = 0.01
"""vLLM raises any temperature between 0 and this to it, and the ratios would be those of another distribution."""


DEVICE_PLUGIN = Gpu()
NOT_WITH_A_CLAIM = "has no effect with resourceClaim: it is of GPUs from a device plugin"


def contradictions(spec: JobSpec) -> list[Problem]:
    """Every contradiction in the specification, in the order of its fields; empty means valid."""
    return [problem for check in CHECKS for problem in check(spec)]


def contradictions_without(spec: JobSpec, unknown: Collection[str]) -> list[Problem]:
    """Contradictions that hold whatever the values at these dotted paths are."""
    return [problem for check in CHECKS for problem in _certain(check, spec, unknown)]


def _certain(check: Check, spec: JobSpec, unknown: Collection[str]) -> Iterator[Problem]:
    noted: set[str] = set()
    for problem in check(cast(JobSpec, Reads(spec, "spec", noted))):
        if not any(_covers(path, read) for path in unknown for read in noted):
            yield problem


def _covers(outer: str, inner: str) -> bool:
    return (
        inner == outer or inner.startswith((f"{outer}.", f"{outer}[")) or outer.startswith((f"{inner}.", f"{inner}["))
    )


def _algorithm(spec: JobSpec) -> Iterator[Problem]:
    if spec.algorithm.type == "sft" and spec.training.warm_start is None:
        yield Problem("spec.training.warmStart", "required with algorithm.type sft")
    if spec.algorithm.type == "rl" and spec.training.group_size < 2:
        yield Problem(
            "spec.training.groupSize",
            "must be at least 2: an advantage compares an episode with the others of its group",
        )
    if spec.algorithm.advantage == "outcome" and spec.algorithm.gamma != 1:
        yield Problem("spec.algorithm.gamma", "has no effect with advantage outcome; remove it or use advantage turn")
    low, high = spec.algorithm.clip_low, spec.algorithm.clip_high
    if low is not None and high is not None and high < low:
        yield Problem("spec.algorithm.clipHigh", f"must not be below clipLow ({low})")


def _temperature(spec: JobSpec) -> Iterator[Problem]:
    if spec.algorithm.type == "rl" and not spec.rollout.policy_config.temperature >= MIN_SAMPLING_TEMPERATURE:
        yield Problem(
            "spec.rollout.policyConfig.temperature",
            f"must be at least {MIN_SAMPLING_TEMPERATURE} for reinforcement learning: at 0 all episodes of a group are "
            "the same and teach nothing; evaluation.temperature may be 0",
        )


def _model(spec: JobSpec) -> Iterator[Problem]:
    model = spec.model
    if model.tiny is not None and model.base != "tiny":
        yield Problem("spec.model.tiny", f"only with base tiny, but base is {model.base!r}")
    if model.base == "tiny" and model.revision is not None:
        yield Problem("spec.model.revision", "has no meaning with base tiny")
    if model.tiny and model.tiny.hidden_size % (2 * model.tiny.heads):
        yield Problem("spec.model.tiny.hiddenSize", f"must be a multiple of 2 × heads ({2 * model.tiny.heads})")
    if model.tiny and model.tiny.vision_hidden_size % 32:
        yield Problem("spec.model.tiny.visionHiddenSize", "must be a multiple of 32 (the width of a head)")
    if exports_base(spec) and model.base != "tiny":
        yield Problem(
            "spec.training.warmStart.trains",
            "a new base model is offered for base tiny only; set trains to adapter, or model.base to tiny",
        )


def _base(spec: JobSpec) -> Iterator[Problem]:
    if fault := base_fault(spec.model.base):
        yield Problem("spec.model.base", fault)


def _target_modules(spec: JobSpec) -> Iterator[Problem]:
    modules, path = spec.model.lora.target_modules, "spec.model.lora.targetModules"
    if isinstance(modules, str):
        return
    if "all-linear" in modules:
        yield Problem(path, "write all-linear as a word, without a list")
        return
    for index, name in enumerate(modules):
        if name not in LINEAR_LAYERS:
            near = nearest(name, LINEAR_LAYERS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(LINEAR_LAYERS)}"
            yield Problem(f"{path}[{index}]", f"{shown(name)} is no linear layer that adapters are served on; {hint}")
        elif name in modules[:index]:
            yield Problem(f"{path}[{index}]", f"{name} is named twice")


def _vision(spec: JobSpec) -> Iterator[Problem]:
    policy, images = spec.rollout.policy_config, spec.inference.vllm.limit_mm_per_prompt.image
    if policy.image_only_mode and not uses_vision(spec):
        yield Problem(
            "spec.rollout.policyConfig.imageOnlyMode",
            f"needs a vision model, but {spec.model.base!r} is not known as one; choose another model.base, set "
            "model.supportsVision to true, or set imageOnlyMode to false",
        )
    if policy.use_vision and spec.model.supports_vision is False:
        yield Problem("spec.rollout.policyConfig.useVision", "is true, but model.supportsVision is false")
    if uses_vision(spec) and images < policy.segment_turns:
        yield Problem(
            "spec.inference.vllm.limitMmPerPrompt.image",
            f"must be at least {policy.segment_turns}: the policy sends that many frames per prompt (segmentTurns)",
        )
    if spec.model.base == "tiny":
        merge = spec.model.tiny.spatial_merge_size if spec.model.tiny else 1
        if spec.rollout.env_config.image_size % (16 * merge):
            yield Problem(
                "spec.rollout.envConfig.imageSize",
                f"must be a multiple of {16 * merge} for the tiny model (16 px patches, merged {merge} × {merge})",
            )


def _environment(spec: JobSpec) -> Iterator[Problem]:
    """What the contracts know of Crafter; any other environment checks its settings itself, where it is installed."""
    rollout = spec.rollout
    policy = f"{rollout.env_name}-react"
    if rollout.policy_name not in (None, policy):
        yield Problem("spec.rollout.policyName", f"is of another environment: write {policy}, or leave it out")
    if rollout.env_name == DEFAULT_ENVIRONMENT:
        known = [field.alias or name for name, field in EnvSettings.model_fields.items()]
        for name in rollout.env_config.own:
            yield Problem(f"spec.rollout.envConfig.{name}", unknown_key(name, known))


def _task_app(spec: JobSpec) -> Iterator[Problem]:
    given, path = spec.task_app, "spec.taskApp"
    if given.url is None:
        if given.key_secret is not None:
            yield Problem(f"{path}.keySecret", "only with url: a task app that the job starts has the job's own key")
        return
    if given.key_secret is not None and given.key_secret.optional:
        yield Problem(f"{path}.keySecret.optional", "must be false: without the key, no request is accepted")
    reason = "has no effect with url, whose server runs already"
    for name in ("image", "command"):
        if getattr(given, name) is not None:
            yield Problem(f"{path}.{name}", reason)
    if given.resources != Resources():
        yield Problem(f"{path}.resources", reason)
    if spec.overrides.task_app != PodPatch():
        yield Problem("spec.overrides.taskApp", reason)


def _gpus(spec: JobSpec) -> Iterator[Problem]:
    gpu, tensor_parallel = spec.inference.gpu, spec.inference.vllm.tensor_parallel_size
    if gpu is not None and gpu.count != tensor_parallel:
        yield Problem(
            "spec.inference.gpu.count",
            f"is {gpu.count}, but vllm.tensorParallelSize is {tensor_parallel}: one server uses exactly its GPUs",
        )
    if gpu is None and tensor_parallel > 1:
        yield Problem("spec.inference.vllm.tensorParallelSize", "above 1 needs inference.gpu")
    if spec.trainer.gpu is not None and spec.trainer.gpu.count > 1:
        yield Problem("spec.trainer.gpu.count", "must be 1: the trainer does not split a model over GPUs yet")
    for path, gpu in (("spec.inference.gpu", spec.inference.gpu), ("spec.trainer.gpu", spec.trainer.gpu)):
        if gpu is not None and gpu.resource_claim is not None:
            if gpu.resource_name != DEVICE_PLUGIN.resource_name:
                yield Problem(f"{path}.resourceName", NOT_WITH_A_CLAIM)
            if gpu.product_label != DEVICE_PLUGIN.product_label:
                yield Problem(f"{path}.productLabel", NOT_WITH_A_CLAIM)


def _lengths(spec: JobSpec) -> Iterator[Problem]:
    policy, vllm = spec.rollout.policy_config, spec.inference.vllm
    if policy.max_tokens >= vllm.max_model_len:
        yield Problem(
            "spec.rollout.policyConfig.maxTokens",
            f"leaves no room for the prompt: vllm.maxModelLen is {vllm.max_model_len}",
        )
    elif runs_inference(spec) and (context := shortest_context(spec)).total > vllm.max_model_len:
        yield Problem(
            "spec.inference.vllm.maxModelLen",
            f"must be at least {context.total}: a prompt takes {context.prompt} tokens or more ({context})",
        )
    turn_ops = 1 + policy.max_actions
    if spec.rollout.max_ops < turn_ops:
        yield Problem("spec.rollout.maxOps", f"must be at least {turn_ops}: one turn with its actions")
    if policy.turn_timeout_s > spec.rollout.max_time_s:
        yield Problem("spec.rollout.policyConfig.turnTimeoutS", "must not exceed rollout.maxTimeS")


def _warm_start(spec: JobSpec) -> Iterator[Problem]:
    warm_start = spec.training.warm_start
    if warm_start is None:
        return
    path, data = "spec.training.warmStart", warm_start.data
    if warm_start.episodes is None and data is None:
        yield Problem(f"{path}.episodes", "required, unless data names files")
    if warm_start.episodes is not None and data is not None:
        yield Problem(f"{path}.data", "contradicts episodes: imitate files or the scripted player, not both")
    if warm_start.until_loss is not None and (data.val is None if data else warm_start.episodes == 1):
        yield Problem(
            f"{path}.untilLoss",
            "is measured on held-out decisions, and there are none: name data.val, or at least 2 episodes",
        )
    files = {"train": data.train, "val": data.val or "/"} if data is not None else {}
    for name, file in files.items():
        if not file.startswith("/"):
            yield Problem(f"{path}.data.{name}", "must be an absolute path: the file is read in the trainer's pod")


def _training(spec: JobSpec) -> Iterator[Problem]:
    rewards, training = spec.training.rewards, spec.training
    if rewards.weights and rewards.step_rewards != "per_achievement":
        yield Problem("spec.training.rewards.weights", "only with stepRewards per_achievement")
    for name in rewards.weights if spec.rollout.env_name == DEFAULT_ENVIRONMENT else ():
        if name not in ACHIEVEMENTS:
            near = nearest(name, ACHIEVEMENTS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(ACHIEVEMENTS)}"
            yield Problem(f"spec.training.rewards.weights.{shown(name)[1:-1]}", f"is no achievement; {hint}")
    episodes = training.groups_per_iteration * training.group_size
    if training.updates_per_iteration > episodes * spec.rollout.policy_config.max_llm_calls:
        yield Problem("spec.training.updatesPerIteration", "exceeds the decisions of an iteration")
    if evaluation_seeds(spec).stop > FIRST_TRAINING_SEED:
        yield Problem(
            "spec.evaluation.episodes", f"seeds must stay below {FIRST_TRAINING_SEED}: training's begin there"
        )


def _storage(spec: JobSpec) -> Iterator[Problem]:
    storage = spec.storage
    if storage.run_claim and storage.run_size:
        yield Problem("spec.storage.runSize", "contradicts runClaim: name an existing claim or have one made")
    if storage.storage_class_name and (storage.run_claim or storage.ephemeral):
        yield Problem("spec.storage.storageClassName", "has no effect: it is of the claim that the operator makes")
    if storage.ephemeral and (storage.run_claim or storage.run_size):
        yield Problem("spec.storage.ephemeral", "contradicts runClaim and runSize, which keep the run folder")
    if storage.export is not None:
        yield from _export(storage.export, storage.ephemeral)
    retention = storage.retention.when_deleted, storage.retention.when_finished
    if "Delete" in retention and (storage.run_claim or storage.ephemeral):
        yield Problem("spec.storage.retention", "has no effect: it is of the claim that the operator makes")


def _export(export: Export, ephemeral: bool) -> Iterator[Problem]:
    path = "spec.storage.export"
    if ephemeral:
        yield Problem(path, "needs the run folder's claim, which spec.storage.ephemeral does without")
    if export.adapter is None and export.merged_model is None:
        yield Problem(f"{path}.adapter", "required, unless mergedModel is given")
    if export.adapter is not None and export.adapter == export.merged_model:
        yield Problem(f"{path}.mergedModel", "must be another place than adapter's: files of one name would collide")
    for name, url in (("adapter", export.adapter), ("mergedModel", export.merged_model)):
        if url is not None and url.startswith("hf://") and "/" not in url.removeprefix("hf://"):
            yield Problem(f"{path}.{name}", "a repository of the hub has an owner: hf://OWNER/NAME")


def _operations(spec: JobSpec) -> Iterator[Problem]:
    for index, rule in enumerate(spec.failure_policy.rules):
        if not (rule.component or rule.exit_codes or rule.reasons):
            yield Problem(
                f"spec.failurePolicy.rules[{index}]",
                "matches everything: name a component, exitCodes or reasons",
            )
    before, active = spec.lifecycle.pre_running_deadline_seconds, spec.lifecycle.active_deadline_seconds
    if before is not None and active is not None and before > active:
        yield Problem("spec.lifecycle.preRunningDeadlineSeconds", f"exceeds activeDeadlineSeconds ({active})")
    if spec.placement.topology == "SameNode" and (spec.inference.gpu is None) != (spec.trainer.gpu is None):
        yield Problem("spec.placement.topology", "SameNode needs gpu on both inference and trainer, or on neither")
    if spec.queue_priority_class is not None and spec.queue_name is None:
        yield Problem("spec.queuePriorityClass", "needs queueName")


def _overrides(spec: JobSpec) -> Iterator[Problem]:
    for component in ("task_app", "inference", "trainer"):
        patch, path = getattr(spec.overrides, component), f"spec.overrides.{to_camel(component)}"
        for index, variable in enumerate(patch.env):
            at = f"{path}.env[{index}]"
            if variable.name.startswith(RESERVED_ENV):
                yield Problem(f"{at}.name", f"{variable.name} is set by the operator")
            if (variable.value is None) == (variable.value_from is None):
                yield Problem(f"{at}.value", "give either value or valueFrom")
            if variable.value is not None and pod_templates.SECRET_NAME.search(variable.name):
                yield Problem(f"{at}.value", f"{variable.name} {pod_templates.IN_A_SECRET}")
        for kind in ("labels", "annotations"):
            yield from pod_templates.reserved_keys(getattr(patch, kind), f"{path}.{kind}")
        yield from pod_templates.faults(patch.pod_template, f"{path}.podTemplate", own=component.replace("_", ""))


CHECKS: tuple[Check, ...] = (
    _algorithm,
    _temperature,
    _model,
    _base,
    _target_modules,
    _environment,
    _task_app,
    _vision,
    _gpus,
    _lengths,
    _warm_start,
    _training,
    _storage,
    _operations,
    _overrides,
)
