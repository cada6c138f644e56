"""The mismatch: how far the server's logprobs are from the trainer's, for the weights that sampled.

Engines round differently, so the logprobs of one policy version differ a little. A decision about which they differ by
more than rounding explains was not sampled as the trainer believes, and is masked: it takes no part in the update.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

TOKEN_LIMIT = {"float32": 0.2, "bfloat16": 2.0}
"""Largest difference of a token's logprob that is rounding, nats, by the model's dtype. Measured between vLLM and the
trainer: 3e-5 in float32; 0.06 in bfloat16 for the tiny model, and a few tenths for rare tokens of wide ones."""


@dataclass(frozen=True)
class Mismatch:
    """Of a batch, in nats, over the sampled tokens of the decisions that are not masked; None if there are none."""

    max_abs: float | None = None
    mean_abs: float | None = None
    kl: float | None = None
    """k3 estimate of KL(serving‖training) per token."""
    decisions: int = 0
    """Decisions that were compared."""
    masked: int = 0
    """Of them, those that disagree."""
    worst: float = 0.0
    """Largest difference, masked decisions included; infinite where one is not finite."""

    @property
    def masked_rate(self) -> float:
        return self.masked / max(1, self.decisions)


@dataclass
class MismatchMeter:
    """Collects a batch's mismatch, micro-batch by micro-batch. ``limit`` is the largest difference of a token."""

    limit: float
    differences: list[Tensor] = field(default_factory=list)
    decisions: int = 0
    masked: int = 0
    worst: float = 0.0

    def add(self, trained_T: Tensor, serving_T: Tensor, decision_T: Tensor, decisions: int) -> Tensor:
        """Compare T tokens of N decisions; returns which decisions agree, bool [N]."""
        difference_T = trained_T.detach().double() - serving_T.double()
        largest_N = difference_T.new_zeros(decisions).scatter_reduce(0, decision_T, difference_T.abs(), "amax")
        agrees_N = largest_N <= self.limit  # False for NaN
        self.differences.append(difference_T[agrees_N[decision_T]].cpu())
        self.decisions += decisions
        self.masked += decisions - int(agrees_N.sum())
        self.worst = max(self.worst, torch.nan_to_num(largest_N, nan=torch.inf).max().item())
        return agrees_N

    def result(self) -> Mismatch:
        """The mismatch of everything that was added."""
        difference_T = torch.cat([torch.empty(0, dtype=torch.float64), *self.differences])
        if not len(difference_T):
            return Mismatch(decisions=self.decisions, masked=self.masked, worst=self.worst)
        return Mismatch(
            max_abs=difference_T.abs().max().item(),
            mean_abs=difference_T.abs().mean().item(),
            kl=(difference_T.exp() - 1 - difference_T).mean().item(),
            decisions=self.decisions,
            masked=self.masked,
            worst=self.worst,
        )
