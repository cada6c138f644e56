"""What an adapter must be before it is served.

vLLM takes modules that the model does not have and matrices of a wrong shape without a word, and non-finite weights
leave NaN in KV-cache blocks that then spoil the answers of *other* models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 16
LARGEST_SCALE = 1e4
"""Of ``lora_alpha / r``."""
LARGEST_WEIGHT = 1e4
"""Of either matrix. Trained ones stay below 10; with numbers near a dtype's end the product is not finite."""
DESCRIPTIVE = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_version", "revision"),
        *("lora_dropout", "qalora_group_size", "target_modules", "task_type"),
    ]
)
"""Keys of the configuration that change nothing of what is computed when the adapter is served: the modules are those
of the tensors, dropout is for training."""
REQUIRED = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False)}
"""Values of keys that have others which mean another computation."""
LM_HEAD = "lm_head"

Shape = tuple[int, ...]
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class AdapterError(Exception):
    """Arrived whole, and must not be served."""


def weight_shapes(model_dir: Path) -> dict[str, Shape]:
    """Shapes of a model's weights by name, from the headers of its safetensors files."""
    from safetensors import safe_open

    shapes: dict[str, Shape] = {}
    for path in sorted(model_dir.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def check_adapter(folder: Path, base: Mapping[str, Shape], max_rank: int) -> None:
    """Raise :class:`AdapterError` unless the adapter is a plain LoRA whose tensors have bounded values, the declared
    rank and the base model's shapes.

    ``base`` has the base model's weight shapes ([out, in] for a linear). Where a checkpoint uses other names than the
    adapter for all modules (transformers renames some architectures on loading), only rank and values are checked.
    """
    rank = _rank(_configuration(folder / CONFIG), max_rank)
    pairs = _pairs(folder / WEIGHTS)
    comparable = any(f"{module}.weight" in base for module in pairs)
    for module, shapes in pairs.items():
        if module.rpartition(".")[2] == LM_HEAD:
            raise AdapterError(f"{module}: adapters of the LM head are not served")
        a, b = shapes.get("A"), shapes.get("B")
        if a is None or b is None:
            raise AdapterError(f"{module} has only one of lora_A and lora_B")
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise AdapterError(f"{module} has lora_A {list(a)} and lora_B {list(b)}, which is not rank {rank}")
        if not comparable:
            continue
        linear = base.get(f"{module}.weight")
        if linear is None:
            raise AdapterError(f"{module} is no module of the base model")
        if linear != (b[0], a[1]):
            raise AdapterError(f"{module} is {[b[0], a[1]]}, the base model's is {list(linear)}")


def _configuration(path: Path) -> dict[str, Any]:
    """The adapter's configuration, which is that of a plain LoRA: any other key than the known ones must be unset."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        config = json.loads(text) if len(text) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG} cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{CONFIG} is no JSON object of at most {MAX_CONFIG_BYTES} bytes")
    for key, value in config.items():
        if key in DESCRIPTIVE or key in ("r", "lora_alpha"):
            continue
        allowed = REQUIRED.get(key)
        if (allowed is None and value) or (allowed is not None and value not in allowed):
            raise AdapterError(f"{CONFIG} has {key} {value!r:.100}; the server takes plain LoRA adapters only")
    return config


def _rank(config: Mapping[str, Any], max_rank: int) -> int:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise AdapterError(f"{CONFIG} has rank {rank!r:.100}; the server takes 1 to {max_rank}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= LARGEST_SCALE * rank:
        raise AdapterError(f"{CONFIG} has lora_alpha {alpha!r:.100}; the server takes up to {LARGEST_SCALE:g} times r")
    return rank


def _pairs(path: Path) -> dict[str, dict[str, Shape]]:
    """Shapes of each module's two matrices, all of them of bounded floating-point numbers."""
    import torch
    from safetensors import SafetensorError, safe_open

    pairs: dict[str, dict[str, Shape]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                match = _TENSOR.fullmatch(name)
                if match is None:
                    raise AdapterError(f"{name} is no LoRA matrix")
                tensor = file.get_tensor(name)
                if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not tensor.numel():
                    raise AdapterError(f"{name} is no matrix of floating-point numbers")
                largest = tensor.abs().max().item()
                if not largest <= LARGEST_WEIGHT:
                    raise AdapterError(
                        f"{name} has values that are not finite, or beyond {LARGEST_WEIGHT:g}: {largest:g}"
                    )
                pairs.setdefault(match["module"], {})[match["side"]] = tuple(tensor.shape)
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} cannot be read: {error}") from None
    if not pairs:
        raise AdapterError(f"{WEIGHTS} has no tensors")
    return pairs
