"""Guards: limits that stop a run whose training has failed, and say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visionrl.component import ConfigurationError
from visionrl.job import Guards


class TrainingDiverged(ConfigurationError):
    """Training has failed, and neither more iterations nor a retry would help; the message names guard and limit."""


def check(metrics: Sequence[Mapping[str, Any]], guards: Guards) -> None:
    """Raise :class:`TrainingDiverged` where the last ``patience`` iterations all break a limit."""
    recent = metrics[-guards.patience :]
    if len(recent) < guards.patience:
        return
    if guards.max_invalid_rate is not None:
        rates = [record["invalid_rate"] for record in recent]
        if min(rates) > guards.max_invalid_rate:
            raise TrainingDiverged(
                f"training.guards.maxInvalidRate: {min(rates):.0%} of the answers or more were no usable tool call in "
                f"each of the last {guards.patience} iterations (limit {guards.max_invalid_rate:.0%}); lower "
                "training.learningRate or raise training.rewards.invalidPenalty"
            )
    if guards.min_entropy is not None:
        entropies = [record["entropy"] for record in recent]
        if max(entropies) < guards.min_entropy:
            raise TrainingDiverged(
                f"training.guards.minEntropy: the policy's entropy was {max(entropies):.3g} nats per token or less in "
                f"each of the last {guards.patience} iterations (limit {guards.min_entropy:g}); lower "
                "training.learningRate or raise the sampling temperature"
            )


def check_mismatch(kl: float, max_abs: float, guards: Guards) -> None:
    """Raise :class:`TrainingDiverged` where serving and training disagree about one version."""
    if guards.max_mismatch_kl is not None and kl > guards.max_mismatch_kl:
        raise TrainingDiverged(
            f"training.guards.maxMismatchKL: serving and training disagree, KL {kl:.3g} nats per token (limit "
            f"{guards.max_mismatch_kl:g}), largest difference of a logprob {max_abs:.3g}; compare model.dtype and "
            "the image settings of server and trainer"
        )
