"""Root mean square normalization (arXiv:1910.07467) in one operation."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm


class RmsNorm(nn.Module):
    """A norm of the language model. The stock one is eight operations, of which a GPU reads and writes every result,
    and keeps copies in float32; torch's own is one kernel there. It computes in float32 as well and rounds once, where
    the stock one and vLLM's definition also round before the weight. The weight keeps its name."""

    def __init__(self, stock: Qwen3VLTextRMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = stock.weight, stock.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.weight.to(hidden_states.dtype)  # float32 only where all weights are trained
        return F.rms_norm(hidden_states, weight.shape, weight, self.eps)


def with_one_operation_norms(language_model: Any) -> None:
    """Replace the stock norms of a language model."""
    for module in list(language_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen3VLTextRMSNorm):
                setattr(module, name, RmsNorm(child))
