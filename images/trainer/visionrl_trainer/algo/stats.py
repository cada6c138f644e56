"""Diagnostics of an iteration's updates, summed on the device while they are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionrl_trainer.algo.losses import LossTerms
from visionrl_trainer.algo.mismatch import Mismatch
from visionrl_trainer.report.histogram import BINS, Histogram

LARGEST_LOG_RATIO = 0.5
"""Of the histogram: ratios of 0.61 to 1.65. Losses clip nearer to 1."""


@dataclass(frozen=True)
class UpdateStats:
    """Diagnostics of an iteration's updates; means over tokens (over decisions for GSPO's ratio and clip). None where
    nothing was trained on, or where the number is not finite."""

    loss: float | None
    grad_norm: float
    """Largest over the updates that were made, before clipping."""
    entropy: float | None
    clip_fraction: float | None
    ratio_mean: float | None
    ratio_max: float | None
    advantage_std: float
    mismatch_max: float | None
    """Largest absolute difference of a logprob between serving and training, nats."""
    mismatch_mean: float | None
    mismatch_kl: float | None
    masked_rate: float
    """Share of the decisions about which serving and training disagree; they are left out."""
    tokens: int
    """Completion tokens trained on."""
    updates: int
    """Optimizer steps."""
    skipped_updates: int
    """Steps that were not taken, because the gradient was not finite."""
    log_ratios: dict[str, Any] | None = None
    """Histogram of the ratios' logarithms; the outermost bins hold what lies beyond."""


class Totals:
    """Sums over the micro-batches of an iteration.

    They stay on the device until :meth:`stats`: to read a number is to wait for the device, which would then idle while
    the next micro-batch is put together.
    """

    def __init__(self, device: torch.device) -> None:
        self.grad_norm = 0.0
        self.tokens = self.ratios = self.updates = self.skipped = 0
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        """Of loss, entropy, clips and ratios."""
        self.ratio_max = torch.zeros((), device=device)
        self.log_ratios = torch.zeros(BINS, device=device)

    def count(self, terms: LossTerms, entropy_T: Tensor) -> None:
        """One micro-batch."""
        ratio = terms.ratio.detach().float()
        self.sums += torch.stack([terms.loss.detach(), entropy_T.sum(), terms.clipped.sum(), ratio.sum()])
        self.ratio_max = torch.maximum(self.ratio_max, ratio.max())
        self.tokens += len(entropy_T)
        self.ratios += len(ratio)
        log_ratio = ratio.log().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        self.log_ratios += torch.histc(log_ratio, BINS, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)

    def add(self, step: Totals) -> None:
        """The micro-batches of one step."""
        self.sums += step.sums
        self.ratio_max = torch.maximum(self.ratio_max, step.ratio_max)
        self.tokens += step.tokens
        self.ratios += step.ratios
        self.log_ratios += step.log_ratios

    def stats(self, advantage_std: float, mismatch: Mismatch) -> UpdateStats:
        """Read them."""
        loss, entropy, clipped, ratio = self.sums.tolist()
        return UpdateStats(
            loss=_mean(loss, self.updates + self.skipped),
            grad_norm=self.grad_norm,
            entropy=_mean(entropy, self.tokens),
            clip_fraction=_mean(clipped, self.ratios),
            ratio_mean=_mean(ratio, self.ratios),
            ratio_max=_mean(self.ratio_max.item(), 1 if self.ratios else 0),
            advantage_std=advantage_std,
            mismatch_max=mismatch.max_abs,
            mismatch_mean=mismatch.mean_abs,
            mismatch_kl=mismatch.kl,
            masked_rate=mismatch.masked_rate,
            tokens=self.tokens,
            updates=self.updates,
            skipped_updates=self.skipped,
            log_ratios=Histogram(
                low=-LARGEST_LOG_RATIO,
                high=LARGEST_LOG_RATIO,
                counts=[int(count) for count in self.log_ratios.tolist()],
            ).model_dump()
            if self.ratios
            else None,
        )


def _mean(total: float, count: int) -> float | None:
    return total / count if count and math.isfinite(total) else None
