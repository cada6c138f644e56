"""What a job may say and probably does not mean: fields without effect, and settings that seldom work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import BaseModel

from visionrl.checks.bases import ADVICE, is_known_trainable, is_path
from visionrl.checks.context import longest_context, resized
from visionrl.checks.derived import policy_iterations, runs_inference, uses_vision
from visionrl.job import Algorithm, Evaluation, JobSpec, Lora, Rewards, Training, Vllm, WarmStart
from visionrl.problems import Problem

LOW_TEMPERATURE = 0.2
"""Differences between the engines' logprobs are divided by the temperature."""


def warnings(spec: JobSpec) -> list[Problem]:
    """What is allowed and probably not meant. A field that has its default is not counted as set: an API server writes
    defaults into every job."""
    return [problem for check in CHECKS for problem in check(spec)]


def _without_effect(path: str, section: BaseModel, defaults: BaseModel, names: str, why: str) -> Iterator[Problem]:
    """Those of the named fields that differ from their defaults."""
    for name in names.split():
        if getattr(section, name) != getattr(defaults, name):
            alias = type(section).model_fields[name].alias
            yield Problem(f"{path}.{alias}", f"has no effect {why}")


def _supervised(spec: JobSpec) -> Iterator[Problem]:
    if spec.algorithm.type != "sft":
        return
    why = "with algorithm.type sft, which ends after the warm start"
    names = " ".join(name for name in Algorithm.model_fields if name != "type")
    yield from _without_effect("spec.algorithm", spec.algorithm, Algorithm(), names, why)
    names = (
        "groups_per_iteration group_size max_resampling learning_rate weight_decay updates_per_iteration "
        "max_staleness guards rewards"
    )
    # Of `iterations`, which has no default, nobody can tell whether it is meant.
    yield from _without_effect("spec.training", spec.training, Training(iterations=1), names, why)
    warm_start = spec.training.warm_start
    if warm_start is not None and warm_start.trains != "adapter":
        names = " ".join(Lora.model_fields)
        yield from _without_effect("spec.model.lora", spec.model.lora, Lora(), names, f"{why}, of the whole model here")


def _sampling(spec: JobSpec) -> Iterator[Problem]:
    policy = spec.rollout.policy_config
    if policy.top_p < 1:
        yield Problem(
            "spec.rollout.policyConfig.topP",
            "applies to evaluation only: training samples the whole distribution, a nucleus biases the ratios",
        )
    if spec.algorithm.type == "rl" and policy.temperature < LOW_TEMPERATURE:
        yield Problem(
            "spec.rollout.policyConfig.temperature",
            f"is low for training: the episodes of a group will differ little, and differences between the engines "
            f"are divided by {policy.temperature:g}; 0.6 to 1 is usual",
        )
    if policy.segment_turns > policy.max_llm_calls:
        yield Problem(
            "spec.rollout.policyConfig.segmentTurns",
            f"exceeds maxLlmCalls ({policy.max_llm_calls}), an episode's turns",
        )


def _length(spec: JobSpec) -> Iterator[Problem]:
    context, available = longest_context(spec), spec.inference.vllm.max_model_len
    if runs_inference(spec) and context.total > available:
        yield Problem(
            "spec.inference.vllm.maxModelLen",
            f"may be too small: where answers are as long as maxTokens allows, a prompt takes about {context.total} "
            f"tokens ({context}); such a turn is refused by the server and ends its episode",
        )


def _frames(spec: JobSpec) -> Iterator[Problem]:
    side, base = spec.rollout.env_config.image_size, spec.model.base
    # A folder has a processor of its own: the one that `visionrl train` writes of the tiny model takes smaller frames.
    if uses_vision(spec) and base != "tiny" and not is_path(base) and resized(side) != side:
        yield Problem(
            "spec.rollout.envConfig.imageSize",
            f"is no multiple of 32 from 256 on: Qwen3-VL scales frames to {resized(side)} px, which blurs the cells",
        )


def _base(spec: JobSpec) -> Iterator[Problem]:
    base = spec.model.base
    if not is_path(base) and not is_known_trainable(base):
        yield Problem("spec.model.base", f"is not known by its name, and the trainer trains Qwen3-VL alone; {ADVICE}")


def _rewards(spec: JobSpec) -> Iterator[Problem]:
    rewards = spec.training.rewards
    if rewards.step_rewards != "consistent":
        yield from _without_effect(
            "spec.training.rewards", rewards, Rewards(), "step_lambda", "without stepRewards consistent"
        )


def _warm_start(spec: JobSpec) -> Iterator[Problem]:
    warm_start = spec.training.warm_start
    if warm_start is not None and warm_start.data is not None:
        yield from _without_effect(
            "spec.training.warmStart",
            warm_start,
            WarmStart(steps=1),
            "player turns perturbation",
            "with data: it is of a player's episodes",
        )
    if warm_start is not None and warm_start.player == "random":
        path, why = "spec.training.warmStart", "with player random, whose every turn is random"
        yield from _without_effect(path, warm_start, WarmStart(steps=1), "perturbation", why)


def _evaluation(spec: JobSpec) -> Iterator[Problem]:
    if spec.evaluation.episodes == 0:
        names = "every_iterations temperature first_seed"
        yield from _without_effect("spec.evaluation", spec.evaluation, Evaluation(), names, "with episodes 0")


def _serving(spec: JobSpec) -> Iterator[Problem]:
    vllm, path = spec.inference.vllm, "spec.inference.vllm"
    if not runs_inference(spec):
        return
    if vllm.max_num_seqs < spec.rollout.max_concurrent:
        yield Problem(
            f"{path}.maxNumSeqs",
            f"is below rollout.maxConcurrent ({spec.rollout.max_concurrent}): some episodes in flight wait for others",
        )
    if spec.inference.gpu is None:
        names, why = "gpu_memory_utilization enforce_eager", "without inference.gpu: vLLM runs on the CPU"
    else:
        names, why = "cpu_kv_cache_gib", "with inference.gpu: the KV cache is in the GPU's memory"
    yield from _without_effect(path, vllm, Vllm(), names, why)


def _checkpoints(spec: JobSpec) -> Iterator[Problem]:
    iterations = policy_iterations(spec)
    if spec.storage.ephemeral:
        yield Problem(
            "spec.storage.ephemeral",
            "in a cluster, what is trained is lost with the trainer's pod; remove it, and a claim keeps the run folder",
        )
    if iterations and spec.training.checkpoint_every > iterations:
        yield Problem(
            "spec.training.checkpointEvery",
            f"exceeds iterations ({iterations}): a trainer that is killed starts over",
        )


CHECKS: tuple[Callable[[JobSpec], Iterator[Problem]], ...] = (
    _supervised,
    _base,
    _serving,
    _length,
    _frames,
    _sampling,
    _rewards,
    _warm_start,
    _checkpoints,
    _evaluation,
)
