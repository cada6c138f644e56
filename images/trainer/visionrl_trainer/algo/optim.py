"""Optimizers and their schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

BETAS = (0.9, 0.95)
WARM_UP_STEPS = 50
"""Of a schedule, or a tenth of its steps where that is less."""
FINAL_SHARE = 0.05
"""Share of the peak learning rate at the end of a schedule."""


def adapter_optimizer(
    parameters: Sequence[tuple[str, Parameter]], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW on the adapter, at a constant learning rate."""
    return torch.optim.AdamW(
        [p for _, p in parameters], lr=learning_rate, betas=BETAS, weight_decay=weight_decay, fused=True
    )


def full_optimizers(
    parameters: Sequence[tuple[str, Parameter]], kind: str, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Optimizers for training all weights. ``muon`` takes the hidden layers' matrices (Jordan 2024), with updates
    scaled to AdamW's root mean square (arXiv:2502.16982), and leaves embeddings and vectors to AdamW."""
    hidden = [p for n, p in parameters if kind == "muon" and p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    taken = {id(parameter) for parameter in hidden}
    rest = [parameter for _, parameter in parameters if id(parameter) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS)]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                lr=learning_rate,
                weight_decay=weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then a cosine down to ``FINAL_SHARE``."""
    warm_up = min(1.0, (step + 1) / min(WARM_UP_STEPS, max(1, steps // 10)))
    return warm_up * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * step / steps)))
