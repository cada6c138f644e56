"""A stand-in trainer with one small adapter and the base model that it fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.inference import KEY
from tests.support.trainer import StandInTrainer, named_by_content

MODULE = "model.language_model.layers.0.self_attn.q_proj"
RANK, OUT, IN = 4, 12, 8
BASE = {f"{MODULE}.weight": (OUT, IN)}
CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj"],
    "lora_dropout": 0.1,
    "use_dora": False,
    "rank_pattern": {},
    "modules_to_save": None,
}
"""As peft writes it, with fewer keys."""


def filled(*shape: int, value: float = 1.0) -> Any:
    import torch

    return torch.full(shape, value)


def write_adapter(folder: Path, **changes: object) -> None:
    """An adapter of rank 4 on one linear [12, 8]; ``changes`` replace tensors by name suffix, or drop them (None)."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": torch.ones(RANK, IN),
        f"base_model.model.{MODULE}.lora_B.weight": torch.ones(OUT, RANK),
    }
    for suffix, tensor in changes.items():
        name = f"base_model.model.{MODULE}.{suffix}.weight"
        tensors.pop(name, None)
        if isinstance(tensor, torch.Tensor):
            tensors[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[StandInTrainer]:
    root = tmp_path / "trainer"
    write_adapter(root / "adapters" / "draft")
    named_by_content(root / "adapters" / "draft", "job", 1)
    base = root / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights" * 1000)
    with StandInTrainer(root, KEY) as trainer:
        yield trainer


@pytest.fixture
def name(trainer: StandInTrainer) -> str:
    """Name of the trainer's one version."""
    return next((trainer.root / "adapters").iterdir()).name
