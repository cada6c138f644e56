"""Policy-gradient losses as plain functions over one micro-batch.

A decision is a prompt and its sampled completion. The tokens of all decisions are concatenated (dimension T);
``decision_T`` gives the decision of each. The losses of a step's micro-batches add up to the loss of the step: the
normalisers ``decisions`` and ``tokens`` count the whole step, so the micro-batch size does not change the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from visionrl.job import Algorithm


@dataclass(frozen=True)
class LossBatch:
    """One micro-batch. N decisions, T completion tokens."""

    logprobs_T: Tensor
    """Of the sampled tokens under the policy being trained; carries the gradient."""
    old_logprobs_T: Tensor
    """Under the policy before this iteration's first update, computed by the trainer."""
    inference_logprobs_T: Tensor
    """As the server reported them when it sampled."""
    advantages_N: Tensor
    decision_T: Tensor
    """Row of each token, ascending."""
    decisions: int
    """Decisions of the whole optimizer step."""
    tokens: int
    """Completion tokens of the whole optimizer step."""
    longest: int
    """Longest completion that could have been sampled (Dr.GRPO's constant)."""
    reference_logprobs_T: Tensor | None = None
    """Under the policy that training began with; only with a KL coefficient."""


@dataclass(frozen=True)
class LossTerms:
    """The loss and its diagnostics; ``clipped`` and ``ratio`` are per token, or per decision for GSPO."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class Clip:
    low: float
    high: float


# Published defaults: GRPO and Dr.GRPO ε 0.2; DAPO's clip-higher 0.2/0.28 (arXiv:2503.14476); GSPO 3e-4/4e-4
# (arXiv:2507.18071, §5.1); CISPO bounds the weight from above only (arXiv:2506.13585: no lower bound, ε_high tuned).
DEFAULT_CLIPS = {
    "grpo": Clip(0.2, 0.2),
    "dr_grpo": Clip(0.2, 0.2),
    "dapo": Clip(0.2, 0.28),
    "gspo": Clip(3e-4, 4e-4),
    "cispo": Clip(1.0, 0.28),
}


def policy_loss(algorithm: Algorithm, batch: LossBatch) -> LossTerms:
    """The job's loss, with truncated importance sampling and, with a KL coefficient, the KL term."""
    default = DEFAULT_CLIPS[algorithm.loss]
    clip = Clip(
        default.low if algorithm.clip_low is None else algorithm.clip_low,
        default.high if algorithm.clip_high is None else algorithm.clip_high,
    )
    terms = LOSSES[algorithm.loss](batch, clip, importance_weights(batch, algorithm.importance_cap))
    if algorithm.kl_coefficient and batch.reference_logprobs_T is not None:
        kl_T = kl_to_reference(batch.logprobs_T, batch.reference_logprobs_T)
        kl = algorithm.kl_coefficient * MEANS[algorithm.loss](kl_T, batch)
        return LossTerms(terms.loss + kl, terms.ratio, terms.clipped)
    return terms


def importance_weights(batch: LossBatch, cap: float) -> Tensor:
    """min(π_train/π_serve, cap) per token, without gradient: corrects what the server's numerics sampled
    differently (truncated importance sampling, "Your efficient RL framework secretly brings you off-policy RL
    training", 2025)."""
    return (batch.old_logprobs_T - batch.inference_logprobs_T).exp().clamp(max=cap).detach()


def grpo(batch: LossBatch, clip: Clip, weights_T: Tensor) -> LossTerms:
    """Mean over decisions of the decision's mean over tokens (GRPO, arXiv:2402.03300, eq. 3)."""
    surrogate_T, ratio_T, clipped_T = _clipped_surrogate(batch, clip)
    return LossTerms(-mean_over_rows(weights_T * surrogate_T, batch), ratio_T, clipped_T)


def dr_grpo(batch: LossBatch, clip: Clip, weights_T: Tensor) -> LossTerms:
    """Sum over tokens divided by a constant length: no bias towards short answers (arXiv:2503.20783, §3.2)."""
    surrogate_T, ratio_T, clipped_T = _clipped_surrogate(batch, clip)
    return LossTerms(-mean_by_constant(weights_T * surrogate_T, batch), ratio_T, clipped_T)


def dapo(batch: LossBatch, clip: Clip, weights_T: Tensor) -> LossTerms:
    """Mean over all tokens of the step, with a higher upper clip (DAPO, arXiv:2503.14476, eq. 8)."""
    surrogate_T, ratio_T, clipped_T = _clipped_surrogate(batch, clip)
    return LossTerms(-mean_over_tokens(weights_T * surrogate_T, batch), ratio_T, clipped_T)


def gspo(batch: LossBatch, clip: Clip, weights_T: Tensor) -> LossTerms:
    """One ratio per decision, the geometric mean of its tokens' ratios (GSPO, arXiv:2507.18071, eq. 5–7)."""
    lengths_N = _sum_decisions(torch.ones_like(batch.logprobs_T), batch)
    ratio_N = (_sum_decisions(batch.logprobs_T - batch.old_logprobs_T, batch) / lengths_N).exp()
    weights_N = _sum_decisions(weights_T.log(), batch).div(lengths_N).exp()
    bounded_N = ratio_N.clamp(1 - clip.low, 1 + clip.high)
    surrogate_N = torch.minimum(ratio_N * batch.advantages_N, bounded_N * batch.advantages_N)
    clipped_N = (ratio_N * batch.advantages_N > bounded_N * batch.advantages_N).float()
    return LossTerms(-(weights_N * surrogate_N).sum() / batch.decisions, ratio_N.detach(), clipped_N)


def cispo(batch: LossBatch, clip: Clip, weights_T: Tensor) -> LossTerms:
    """REINFORCE with the clipped ratio as a constant weight: every token keeps a gradient (arXiv:2506.13585,
    eq. 4)."""
    ratio_T = (batch.logprobs_T - batch.old_logprobs_T).exp().detach()
    bounded_T = ratio_T.clamp(1 - clip.low, 1 + clip.high)
    objective_T = bounded_T * batch.advantages_N[batch.decision_T] * batch.logprobs_T
    return LossTerms(-mean_over_tokens(weights_T * objective_T, batch), ratio_T, (ratio_T != bounded_T).float())


def mean_over_rows(values_T: Tensor, batch: LossBatch) -> Tensor:
    """This micro-batch's share of the step's mean over decisions of their means over tokens."""
    lengths_N = _sum_decisions(torch.ones_like(values_T), batch)
    return _sum_decisions(values_T, batch).div(lengths_N).sum() / batch.decisions


def mean_over_tokens(values_T: Tensor, batch: LossBatch) -> Tensor:
    """This micro-batch's share of the step's mean over tokens."""
    return values_T.sum() / batch.tokens


def mean_by_constant(values_T: Tensor, batch: LossBatch) -> Tensor:
    """This micro-batch's share of the step's sum over tokens, divided by decisions of the greatest length."""
    return values_T.sum() / (batch.decisions * batch.longest)


def kl_to_reference(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(π‖reference) per token: unbiased and never negative."""
    log_ratio_T = reference_logprobs_T - logprobs_T
    return log_ratio_T.exp() - log_ratio_T - 1


def _clipped_surrogate(batch: LossBatch, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """min(r·A, clip(r)·A) per token (PPO, arXiv:1707.06347, eq. 7), the ratio, and where the clip decided."""
    ratio_T = (batch.logprobs_T - batch.old_logprobs_T).exp()
    advantages_T = batch.advantages_N[batch.decision_T]
    free_T = ratio_T * advantages_T
    bounded_T = ratio_T.clamp(1 - clip.low, 1 + clip.high) * advantages_T
    return torch.minimum(free_T, bounded_T), ratio_T.detach(), (free_T > bounded_T).float()


def _sum_decisions(values_T: Tensor, batch: LossBatch) -> Tensor:
    """Sum of each decision's tokens."""
    zeros_N = torch.zeros_like(batch.advantages_N, dtype=values_T.dtype)
    return zeros_N.index_add(0, batch.decision_T, values_T)


LOSSES: dict[str, Callable[[LossBatch, Clip, Tensor], LossTerms]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
}

MEANS: dict[str, Callable[[Tensor, LossBatch], Tensor]] = {
    "grpo": mean_over_rows,
    "dr_grpo": mean_by_constant,
    "dapo": mean_over_tokens,
    "gspo": mean_over_rows,
    "cispo": mean_over_tokens,
}
"""How each loss aggregates tokens; its KL term does the same, so that their ratio is that of the coefficient."""
