"""The LoRA adapter on the language model's linear layers: float32 weights, computed in the model's dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from visionrl.job import LINEAR_LAYERS, Lora


class AdaptedLinear(Linear):
    """A linear layer and its adapter (arXiv:2106.09685): ``x W + s x A B``.

    The weights of A and B are float32, so that small updates accumulate, and are rounded to the input's dtype for the
    computation, as a server holds them: no activation is copied to float32. The adapter's part is added within its
    second product; peft would write it, scale it and add it, each as wide as the layer's output. So the sum is rounded
    once. vLLM's kernels round the part as well, before they add it: one rounding of many that serving and training do
    not share, and that the mismatch measures.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x_PI = x.flatten(0, -2)
        result_PO = self.base_layer(x_PI)
        if not self.disable_adapters:
            for name in self.active_adapters:
                down: Any = self.lora_A[name].weight
                up: Any = self.lora_B[name].weight
                low_PR = F.linear(self.lora_dropout[name](x_PI), down.to(x.dtype)).to(result_PO.dtype)
                result_PO.addmm_(low_PR, up.to(result_PO.dtype).T, alpha=self.scaling[name])
        return result_PO.view(*x.shape[:-1], -1)


def with_adapter(model: Any, lora: Lora, seed: int) -> PeftModel:
    """Freeze the base and add a new adapter to it (B = 0: it has no effect yet)."""
    names = LINEAR_LAYERS if lora.target_modules == "all-linear" else tuple(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(names)})",
    )
    config._register_custom_module({nn.Linear: AdaptedLinear})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)
