"""The LoRA adapter on the language model's linear layers: float32 weights, computed in the model's dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from visionrl.job import LINEAR_LAYERS, Lora


class LowRankLinear(nn.Linear):
    """One of an adapter's two matrices. Its weight is float32, so that small updates accumulate, and is rounded to the
    input's dtype for the computation, as a server holds it: no activation is copied to float32."""

    def __init__(self, matrix: nn.Linear) -> None:
        super().__init__(matrix.in_features, matrix.out_features, bias=False, device="meta")
        self.weight = matrix.weight

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def with_adapter(model: Any, lora: Lora, seed: int) -> PeftModel:
    """Freeze the base and add a new adapter to it (B = 0: it has no effect yet)."""
    names = LINEAR_LAYERS if lora.target_modules == "all-linear" else tuple(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(names)})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for matrices in (module.lora_A, module.lora_B):
                for name, matrix in list(matrices.items()):
                    assert isinstance(matrix, nn.Linear)
                    matrices[name] = LowRankLinear(matrix)
    return adapted
