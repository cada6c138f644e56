"""What an adapter must be before it is served.

vLLM takes modules that the model does not have and matrices of a wrong shape without a word, and non-finite weights
leave NaN in KV-cache blocks that then spoil the answers of *other* models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = frozenset({CONFIG, WEIGHTS})

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
    """Raise :class:`AdapterError` unless every tensor is finite, of the declared rank, and fits the base model.

    ``base`` has the base model's weight shapes ([out, in] for a linear). Where a checkpoint uses other names than the
    adapter for all modules (transformers renames some architectures on loading), only rank and values are checked.
    """
    rank = _rank(folder / CONFIG, max_rank)
    pairs = _pairs(folder / WEIGHTS)
    comparable = any(f"{module}.weight" in base for module in pairs)
    for module, shapes in pairs.items():
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


def _rank(path: Path, max_rank: int) -> int:
    try:
        config = json.loads(path.read_text())
        rank = config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{CONFIG} cannot be read: {type(error).__name__}: {error}") from None
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise AdapterError(f"{CONFIG} has rank {rank!r}; the server takes 1 to {max_rank}")
    return rank


def _pairs(path: Path) -> dict[str, dict[str, Shape]]:
    """Shapes of each module's two matrices, all of them finite."""
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
                if not torch.isfinite(tensor).all():
                    raise AdapterError(f"{name} has values that are not finite")
                pairs.setdefault(match["module"], {})[match["side"]] = tuple(tensor.shape)
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} cannot be read: {error}") from None
    if not pairs:
        raise AdapterError(f"{WEIGHTS} has no tensors")
    return pairs
