"""The merged model: base weights plus the adapter's update, one file of weights at a time.

It is the base model's folder with other weights: whatever loads the base loads it.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from visionrl.adapters import MANIFEST, Manifest, write_manifest
from visionrl_trainer.export.copy import ExportError

WEIGHTS = ".safetensors"
# peft's names of the two matrices of a linear layer.
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

logger = logging.getLogger(__name__)


def merge(base: Path, adapter: Path, target: Path) -> Manifest:
    """Write the merged model into the empty folder ``target``. Raises :class:`ExportError` where the adapter has a
    layer that the base does not have: a part of it is never left out."""
    scale, updates = _updates(adapter)
    for path in sorted(base.iterdir()):
        if path.suffix == WEIGHTS:
            _merge_file(path, target / path.name, updates, scale)
        elif path.is_file() and path.name != MANIFEST and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
    if updates:
        raise ExportError(f"{base} has no weights of {min(updates)}, which the adapter changes")
    return write_manifest(target)


def _merge_file(source: Path, target: Path, updates: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
    """Copy a file of weights with the updates of its layers, which are taken out of ``updates``."""
    with safe_open(source, framework="pt") as weights:
        metadata = weights.metadata()
        tensors: dict[str, Tensor] = {}
        for name in sorted(weights.keys()):
            tensor = weights.get_tensor(name)
            if name in updates:
                down, up = updates.pop(name)
                tensor = (tensor.float() + scale * (up.float() @ down.float())).to(tensor.dtype)
            tensors[name] = tensor
    logger.info("%s is merged", source.name)
    save_file(tensors, target, metadata)


def _updates(adapter: Path) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The scale alpha / r, and of each layer, by its name among the base's weights, the matrices A [r, in] and B
    [out, r]."""
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    downs = [name for name in tensors if name.endswith(DOWN)]
    updates = {
        f"{name.removeprefix(PREFIX).removesuffix(DOWN)}.weight": (
            tensors.pop(name),
            tensors.pop(f"{name.removesuffix(DOWN)}{UP}"),
        )
        for name in downs
    }
    if tensors:
        raise ExportError(f"{adapter.name} changes more than weights: {min(tensors)}")
    return config["lora_alpha"] / config["r"], updates
