"""Which adapters may be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.inference.conftest import BASE, CONFIG, IN, OUT, RANK, filled, write_adapter
from visionrl_inference.adapters.check import AdapterError, check_adapter

pytestmark = pytest.mark.vision

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_A": filled(RANK, IN, value=float("nan"))}, "not finite"),
        ({"lora_B": filled(OUT, RANK, value=float("inf"))}, "not finite"),
        ({"lora_A": filled(RANK + 1, IN)}, "not rank 4"),
        ({"lora_B": filled(OUT)}, "not rank 4"),
        ({"lora_B": None}, "only one of"),
        ({"lora_A": None, "lora_B": None}, "no tensors"),
        ({"lora_A": filled(RANK, IN + 1)}, "the base model's is"),
        ({"lora_C": filled(RANK, IN)}, "no LoRA matrix"),
        ({"lora_B": filled(OUT, RANK, value=1e30)}, "beyond 10000"),
        ({"lora_B": filled(OUT, RANK, value=-1e30)}, "beyond 10000"),
        ({"lora_A": filled(RANK, IN).int()}, "no matrix of floating-point numbers"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_adapter(tmp_path, **changes)
    with pytest.raises(AdapterError, match=message):
        check_adapter(tmp_path, BASE, max_rank=16)


def test_a_module_that_the_base_lacks_is_refused_unless_no_name_compares(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    write_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    other = {
        "base_model.model.other.lora_A.weight": torch.ones(4, 3),
        "base_model.model.other.lora_B.weight": torch.ones(5, 4),
    }
    save_file(load_file(path) | other, path)
    with pytest.raises(AdapterError, match="no module of the base model"):
        check_adapter(tmp_path, BASE, max_rank=16)
    check_adapter(tmp_path, {"renamed.weight": (1, 1)}, max_rank=16)


def test_an_adapter_of_the_lm_head_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    write_adapter(tmp_path)
    head = {f"base_model.model.lm_head.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_file(head, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="the LM head are not served"):
        check_adapter(tmp_path, {"lm_head.weight": (4, 4)}, max_rank=16)


def test_a_rank_above_the_servers_and_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    with pytest.raises(AdapterError, match="1 to 2"):
        check_adapter(tmp_path, BASE, max_rank=2)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        check_adapter(tmp_path, BASE, max_rank=16)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        check_adapter(tmp_path, BASE, max_rank=16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 1e308),
        ("lora_alpha", 0),
        ("lora_alpha", -5),
        ("lora_alpha", True),
        ("lora_alpha", "8"),
        ("lora_alpha", None),
        ("r", True),
        ("r", 4.0),
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("use_dora", True),
        ("use_rslora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 99}),
        ("alpha_pattern", {"q_proj": 99}),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 1]]),
        ("a_key_of_tomorrow", True),
    ],
)
def test_a_configuration_that_changes_what_is_computed_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_adapter(tmp_path)
    check_adapter(tmp_path, BASE, max_rank=16)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {key: value}))
    with pytest.raises(AdapterError, match="rank" if key == "r" else key):
        check_adapter(tmp_path, BASE, max_rank=16)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"r": 4' + " " * 100_000 + "}", "{", ""])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        check_adapter(tmp_path, BASE, max_rank=16)
