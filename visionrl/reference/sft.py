"""A file of supervised training (``[algorithm] method = "sft"``) as a job."""

from __future__ import annotations

import math
from collections.abc import Callable

from visionrl.reference.conversion import Conversion
from visionrl.reference.shared import adapter, base_model, gpus, labels, products, whole_vllm

FindData = Callable[[str], tuple[str, int] | None]
"""From a path as the file has it to the path to use, and the number of its lines; None where there is no such file."""

_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules")


def convert_sft(file: Conversion, name: str, find_data: FindData) -> None:
    """Put everything that the file says into our document, section by section."""
    file.put("spec.algorithm.type", "sft", "algorithm.method")
    file.only("algorithm.method", ("sft",), "write sft, or policy_gradient with type online")
    labels(file, name)
    _model(file)
    _adapter(file)
    _gpu(file)
    whole_vllm(file)
    _data(file, find_data)
    _optimizer(file)
    _unused(file)
    file.put("spec.training.iterations", 1, "algorithm.method", "no effect: the job ends after its supervised steps")
    file.put("spec.evaluation.episodes", 0, "algorithm.method", "raise it to play the model before and after")


def _model(file: Conversion) -> None:
    if file.has("job.model"):
        file.put("spec.model.base", file.text("job.model"), "job.model")
        for key in ("model.base", "policy.model_name"):
            file.only(key, (), "job.model names the model already; leave it out")
        supports, key = file.agreed(file.flag, "model_config.supports_vision", "model.supports_vision")
        file.put("spec.model.supportsVision", supports, key)
    else:
        base_model(file)
        file.put("spec.model.supportsVision", file.flag("model_config.supports_vision"), "model_config.supports_vision")
    length = file.integer("model_config.max_model_len")
    file.put("spec.inference.vllm.maxModelLen", length, "model_config.max_model_len", "for evaluations")
    file.integer("model_config.max_images_per_message")
    file.note("model_config.max_images_per_message", "not needed: a message has one frame")


def _adapter(file: Conversion) -> None:
    """LoRA, or all weights."""
    variety, mode = file.text("algorithm.variety"), file.text("training.mode")
    kind, key = (variety, "algorithm.variety") if variety is not None else (mode, "training.mode")
    trains = {"fft": "all", "full": "all", "lora": "adapter", "qlora": None, None: "adapter"}
    if kind not in trains or (kind is not None and trains[kind] is None):
        file.refuse(key, f"is {kind!r}; there are lora, and fft for all weights (of model.base tiny)")
    else:
        file.put("spec.training.warmStart.trains", trains[kind], key)
    if variety is not None and mode is not None and trains.get(variety) != trains.get(mode):
        file.refuse("training.mode", f"is {mode!r}, but algorithm.variety is {variety!r}; write one of them")
    file.only("training.use_qlora", (False,), "adapters are trained on unquantised weights; write false")
    kinds = ("peft", "lora") if trains.get(kind) == "adapter" else ("fft", "full")
    file.only("hyperparameters.train_kind", kinds, f"contradicts {key}; write {kinds[0]}")
    if any(file.has(f"hyperparameters.{name}") for name in _LORA):
        adapter(file, "hyperparameters", names=_LORA)
    else:
        adapter(file, "training.lora", "lora")


def _gpu(file: Conversion) -> None:
    """The trainer's one GPU; a topology says more, where there is one."""
    if file.has("compute.topology.type") or file.has("topology.type"):
        gpus(file)
        return
    count, nodes = file.integer("compute.gpu_count"), file.integer("compute.nodes")
    file.text("compute.gpu_type")
    if nodes not in (None, 1):
        file.refuse("compute.nodes", f"is {nodes}: a model is not split over nodes here; write 1")
    if count is not None and count > 1:
        file.refuse("compute.gpu_count", f"is {count}: the trainer uses one GPU; write 1")
    elif count == 1:
        file.put("spec.trainer.gpu.count", 1, "compute.gpu_count")
        file.put("spec.trainer.gpu.products", products(file), "compute.gpu_type")


def _data(file: Conversion, find_data: FindData) -> None:
    """The files, and how many steps go over them."""
    file.require("job.data", "job.data_path")
    train, key = file.agreed(file.text, "job.data", "job.data_path")
    path = "spec.training.warmStart"
    found = find_data(train) if train is not None else None
    used, lines = found or (train, None)
    file.put(f"{path}.data.train", used, key)
    file.put(f"{path}.data.val", file.text("data.validation_path"), "data.validation_path")
    batch = _batch(file)
    file.put(f"{path}.batchSize", batch, "hyperparameters.global_batch")
    epochs = file.number("hyperparameters.n_epochs")
    if train is not None and lines is None:
        file.refuse(
            key,
            f"no file {train} on this machine: its lines are counted, because steps are counted here and not epochs",
        )
    if lines is None or batch is None or batch < 1:
        return
    steps = math.ceil((1.0 if epochs is None else epochs) * lines / batch)
    note = f"{1 if epochs is None else epochs:g} epochs of {lines} lines in batches of {batch}"
    file.put(f"{path}.steps", max(steps, 1), "hyperparameters.n_epochs", note)


def _batch(file: Conversion) -> int | None:
    """Lines of one optimizer step."""
    whole, key = file.agreed(file.integer, "hyperparameters.global_batch", "hyperparameters.batch_size")
    device = file.integer("hyperparameters.per_device_batch")
    accumulated = file.integer("hyperparameters.gradient_accumulation_steps")
    each = None if device is None else device * (1 if accumulated is None else accumulated)
    if whole is not None and each is not None and whole != each:
        file.refuse(key, f"is {whole}, but per_device_batch × gradient_accumulation_steps is {each}; write one of them")
    return whole if whole is not None else each if each is not None else 32


def _optimizer(file: Conversion) -> None:
    path = "spec.training.warmStart"
    rate = file.number("hyperparameters.learning_rate")
    file.put(f"{path}.learningRate", rate, "hyperparameters.learning_rate", "the peak: linear warm-up, cosine decay")
    file.put(f"{path}.weightDecay", file.number("hyperparameters.weight_decay"), "hyperparameters.weight_decay")
    file.number("hyperparameters.warmup_ratio")
    file.note("hyperparameters.warmup_ratio", "no effect: the warm-up's share of the steps is fixed")
    file.integer("hyperparameters.sequence_length")
    file.note("hyperparameters.sequence_length", "no effect: visionrl filter leaves lines out that are too long")
    parallelism = "hyperparameters.parallelism"
    file.only(f"{parallelism}.fp16", (False,), "weights are bfloat16 or float32 here; write bf16 = true")
    if (wide := file.flag(f"{parallelism}.bf16")) is not None:
        file.put("spec.model.dtype", "bfloat16" if wide else "float32", f"{parallelism}.bf16")
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        file.only(f"{parallelism}.{name}", (1,), "the trainer uses one GPU; write 1")
    for name in ("use_deepspeed", "deepspeed_stage", "fsdp", "activation_checkpointing"):
        file.note(f"{parallelism}.{name}", "no effect: the trainer needs no other engine to fit one GPU")


_VALIDATION = (
    "evaluation_strategy",
    "eval_steps",
    "save_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "load_best_model_at_end",
)


def _unused(file: Conversion) -> None:
    tables = ("training.validation", "hyperparameters.parallelism", "hyperparameters")
    for key in ("training.validation.enabled", *(f"{table}.{name}" for table in tables for name in _VALIDATION)):
        file.note(
            key, "no effect: with data.val the validation loss is measured ten times, and the last weights are kept"
        )
    file.integer("job.poll_seconds")
    file.note("job.poll_seconds", "no effect: progress is watched, not polled")
    file.note("data.topology", "no effect: one trainer reads the data")
    file.text("services.task_url")
    file.note("services.task_url", "not used: a job starts its own task app, where one is needed")
