"""Sections that several kinds of files have: model, adapter, GPUs, vLLM, environment and policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from visionrl.checks.bases import is_path
from visionrl.problems import nearest, shown
from visionrl.reference.conversion import Conversion

PRODUCTS = {
    "A100": ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-80GB-PCIe", "NVIDIA-A100-PCIE-40GB"),
    "A10G": ("NVIDIA-A10G",),
    "B200": ("NVIDIA-B200",),
    "H100": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
    "H200": ("NVIDIA-H200",),
    "L4": ("NVIDIA-L4",),
    "L40S": ("NVIDIA-L40S",),
    "T4": ("Tesla-T4",),
}
"""Values of the node label ``nvidia.com/gpu.product`` (GPU feature discovery)."""

TOPOLOGIES = ("topology", "compute.topology")


# --- names


def labels(file: Conversion, name: str) -> None:
    """The job's name, and the tags as annotations."""
    file.put("apiVersion", "visionrl.dev/v1alpha1", "algorithm")
    file.put("kind", "VisionRLJob", "algorithm")
    label, key = file.agreed(file.text, "model.label", "policy.label")
    made = job_name(label or name)
    note = f"{label!r} in the letters that Kubernetes takes" if label and made != label else ""
    file.put("metadata.name", made, key, note)
    tags = file.table("tags")
    if tags:
        annotations = {
            f"tags/{_plain(tag)}": value if isinstance(value, str) else str(value) for tag, value in tags.items()
        }
        file.put("metadata.annotations", annotations, "tags")


def job_name(text: str) -> str:
    """The nearest name that a job may have.

    >>> job_name("Crafter RL (4B)")
    'crafter-rl-4b'
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"job-{name}"
    return name[:45].strip("-")


def _plain(tag: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", tag).strip("-_.")[:63].strip("-_.") or "tag"


# --- the model


def base_model(file: Conversion) -> None:
    """``[model]``, or the newer ``[policy]``: exactly one of a base and a source."""
    keys = ("model.base", "model.source", "policy.model_name", "policy.source")
    given = [key for key in keys if file.has(key)]
    if len(given) != 1:
        listed = " and ".join(given) or "none of them"
        file.refuse(given[1] if given else keys[0], f"write exactly one of {', '.join(keys)}; there is {listed}")
    for key in given:
        base = file.text(key)
        if base is not None and ":" in base and not is_path(base):
            file.refuse(
                key, f"{shown(base)} is a model of the reference's service; export it and give its path or hub id"
            )
        else:
            file.put("spec.model.base", base, key)
    mode, key = file.agreed(file.text, "model.trainer_mode", "policy.trainer_mode")
    if mode not in (None, "lora"):
        file.refuse(key, f"is {mode!r}: reinforcement learning trains a LoRA adapter on the frozen base; write lora")
    supports, key = file.agreed(
        file.flag, "model.supports_vision", "policy.supports_vision", "training.supports_vision"
    )
    file.put("spec.model.supportsVision", supports, key)


def adapter(file: Conversion, *tables: str, names: Sequence[str] = ("r", "alpha", "dropout", "target_modules")) -> None:
    """LoRA's rank, alpha, dropout and modules, from one of several tables."""
    rank, alpha, dropout, modules = names
    for path, read, name in (
        ("r", file.integer, rank),
        ("alpha", file.integer, alpha),
        ("dropout", file.number, dropout),
        ("targetModules", file.raw, modules),
    ):
        value, key = file.agreed(read, *(f"{table}.{name}" for table in tables))
        if path == "targetModules" and value == ["all-linear"]:
            value = "all-linear"
        note = (
            "in supervised steps only: dropout in policy gradients is noise on the ratios" if path == "dropout" else ""
        )
        file.put(f"spec.model.lora.{path}", value, key, note if value else "")


# --- GPUs


def gpus(file: Conversion) -> None:
    """``[compute]`` and the topology: how many GPUs serve and train. A sum that is wrong is refused."""
    file.require("compute.gpu_count")
    count, nodes = file.integer("compute.gpu_count"), file.integer("compute.nodes")
    kind, key = file.agreed(file.text, *_of("type"))
    if kind not in (None, "single_node_split"):
        file.refuse(key, f"is {kind!r}: one server and one trainer share the GPUs; write single_node_split")
    elif kind is not None:
        file.put("spec.placement.topology", "Any", key, "the components talk HTTP: GPUs of two nodes do as well")
    if nodes not in (None, 1):
        file.refuse("compute.nodes", f"is {nodes}: a model is not split over nodes here; write 1")
    serving, serving_key = file.agreed(file.integer, *_of("gpus_for_vllm"))
    training, training_key = file.agreed(file.integer, *_of("gpus_for_training"))
    reference, reference_key = file.agreed(file.integer, *_of("gpus_for_ref"))
    _reference(file, reference, reference_key)
    if count is None:
        return
    if serving is None or training is None:
        file.refuse(serving_key if serving is None else training_key, "required: how the GPUs are split")
        return
    split = serving + training + (reference or 0)
    if split != count:
        file.refuse(
            "compute.gpu_count",
            f"is {count}, but gpus_for_vllm {serving} + gpus_for_training {training} + gpus_for_ref {reference or 0} "
            f"are {split}",
        )
    accepted = products(file)
    if serving > 0:
        file.put("spec.inference.gpu.count", serving, serving_key)
        file.put("spec.inference.gpu.products", accepted, "compute.gpu_type")
    if training > 0:
        file.put("spec.trainer.gpu.count", training, training_key)
        file.put("spec.trainer.gpu.products", accepted, "compute.gpu_type")
    _tensor_parallel(file, serving)


def _of(name: str) -> tuple[str, ...]:
    return tuple(f"{table}.{name}" for table in TOPOLOGIES)


def _reference(file: Conversion, count: int | None, key: str) -> None:
    if count:
        file.refuse(
            key,
            "needs no GPU here: the reference model is the base with the adapter off; write 0 and lower "
            "compute.gpu_count",
        )
    placement, key = file.agreed(file.text, *_of("reference_placement"), "reference.placement")
    if placement not in (None, "none", "shared", "dedicated"):
        file.refuse(key, f"is {placement!r}; there are none, shared and dedicated")
    elif placement is not None:
        file.note(key, "no effect: the reference model is the base with the adapter off (algorithm.klCoefficient)")


def products(file: Conversion) -> list[str]:
    kind = file.text("compute.gpu_type")
    if kind is None:
        return []  # any node with GPUs
    known = PRODUCTS.get(kind.upper().removeprefix("NVIDIA-").split("-")[0])
    if known is None:
        file.note("compute.gpu_type", "not known here: taken as the value of the node label nvidia.com/gpu.product")
    return list(known or (kind,))


def _tensor_parallel(file: Conversion, serving: int) -> None:
    size, key = file.agreed(file.integer, *_of("tensor_parallel"), "vllm.tensor_parallel_size")
    if size is not None and size != max(serving, 1):
        file.refuse(key, f"is {size}, but gpus_for_vllm is {serving}: one server uses exactly its GPUs")
    if serving > 0:
        file.put(
            "spec.inference.vllm.tensorParallelSize", serving, key if size is not None else _of("gpus_for_vllm")[0]
        )


# --- vLLM

_VLLM_FIELDS = {
    "max_model_len": "spec.inference.vllm.maxModelLen",
    "gpu_memory_utilization": "spec.inference.vllm.gpuMemoryUtilization",
    "max_num_seqs": "spec.inference.vllm.maxNumSeqs",
    "enforce_eager": "spec.inference.vllm.enforceEager",
    "api_server_count": "spec.inference.vllm.apiServerCount",
    "dtype": "spec.model.dtype",
}


def whole_vllm(file: Conversion) -> None:
    """``[vllm]``: those arguments that a job has fields for, and all others as they are."""
    images = file.integer("vllm.limit_mm_per_prompt.image")
    file.put("spec.inference.vllm.limitMmPerPrompt.image", images, "vllm.limit_mm_per_prompt.image")
    for other in ("video", "audio"):
        file.only(f"vllm.limit_mm_per_prompt.{other}", (0,), "prompts have images only; leave it out")
    for name, path in _VLLM_FIELDS.items():
        file.put(path, file.raw(f"vllm.{name}"), f"vllm.{name}")
    known = {*_VLLM_FIELDS, "tensor_parallel_size", "limit_mm_per_prompt"}
    given = file.data.get("vllm")
    others = [name for name in given if name not in known] if isinstance(given, dict) else []
    arguments: list[str] = []
    for name in others:
        key, near = f"vllm.{name}", nearest(name, known, cutoff=0.85)
        if near:
            file.raw(key)
            file.refuse(key, f"unknown key; did you mean {near}?")
        else:
            arguments += _argument(file, key, name.replace("_", "-"))
    if arguments:
        file.put("spec.inference.vllm.extraArgs", arguments, f"vllm.{others[0]}", "passed to vLLM as they are")


def _argument(file: Conversion, key: str, option: str) -> list[str]:
    value = file.raw(key)
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, str | int | float):
        return [f"--{option}", str(value)]
    file.refuse(key, "must be a text, a number, or true or false: it is passed to vLLM as an argument")
    return []


# --- environment and policy


def episode_settings(file: Conversion, env: str, policies: Sequence[str], turns: Sequence[str]) -> None:
    """What an episode is: the environment's table, the policy's tables (the first one has precedence), its turns."""
    _environment(file, env)
    _turns(file, turns)

    def setting(read: Any, name: str, path: str, note: str = "") -> Any:
        value, key = next(
            ((value, f"{table}.{name}") for table in policies if (value := read(f"{table}.{name}")) is not None),
            (None, f"{policies[0]}.{name}"),
        )
        for table in policies:  # those without precedence are read, too
            read(f"{table}.{name}")
        file.put(f"spec.rollout.policyConfig.{path}", value, key, note)
        return value

    setting(file.flag, "use_vision", "useVision")
    setting(file.flag, "image_only_mode", "imageOnlyMode")
    setting(file.number, "temperature", "temperature")
    top_p = file.raw(f"{policies[0]}.top_p")
    note = "in evaluations only: training samples the whole distribution, a nucleus biases the ratios"
    setting(file.number, "top_p", "topP", note if top_p not in (None, 1, 1.0) else "")
    setting(file.integer, "max_tokens", "maxTokens")
    for table in policies:
        file.only(f"{table}.top_k", (-1, 0), "the whole distribution is sampled; leave it out")
        file.only(f"{table}.repetition_penalty", (1, 1.0), "it would bias the ratios; leave it out, or write 1.0")
        file.only(f"{table}.stop_sequences", ([],), "an answer ends at its end token or maxTokens; leave it out")
        file.only(f"{table}.use_tools", (True,), "the policy answers by a tool call; write true, or nothing")
        for name in ("provider", "inference_url", "model"):
            file.text(f"{table}.{name}")


def _environment(file: Conversion, env: str) -> None:
    difficulty = file.text(f"{env}.difficulty")
    if difficulty in ("easy", "hard"):
        note = f"the reference's {difficulty!r} had no effect: it played stock Crafter, which is normal here"
        file.put("spec.rollout.envConfig.difficulty", "normal", f"{env}.difficulty", note)
    else:
        file.put("spec.rollout.envConfig.difficulty", difficulty, f"{env}.difficulty")
    key = f"{env}.env_params.max_steps_per_episode"
    file.put("spec.rollout.envConfig.length", file.integer(key), key)


def _turns(file: Conversion, keys: Sequence[str]) -> None:
    given = {key: value for key in keys if (value := file.integer(key)) is not None}
    if not given:
        return
    key = min(given, key=lambda each: given[each])
    note = "" if len(set(given.values())) == 1 else f"the smallest of {', '.join(given)}"
    file.put("spec.rollout.policyConfig.maxLlmCalls", given[key], key, note)
