"""Guards: limits that stop a run whose training has failed, and say why.

Every comparison is written so that a number that is not one (NaN) breaks the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visionrl.component import ConfigurationError
from visionrl.job import Guards
from visionrl_trainer.algo.mismatch import Mismatch

MISMATCH_SCALE = {"float32": 0.01, "bfloat16": 1.0}
"""What ``maxMismatchKL`` is multiplied by, by the model's dtype: engines that compute in float32 agree far better."""


class TrainingDiverged(ConfigurationError):
    """Training has failed, and neither more iterations nor a retry would help; the message names guard and limit."""


WATCHED = ("skipped_updates", "invalid_rate", "entropy")


def watched(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What :func:`check` needs of an iteration's metrics; all the rest of them grows with the batch."""
    return {name: record[name] for name in WATCHED if name in record}


def check(metrics: Sequence[Mapping[str, Any]], guards: Guards) -> None:
    """Raise :class:`TrainingDiverged` where the last ``patience`` iterations all break a limit.

    Iterations without an update have no entropy; they neither break ``minEntropy`` nor end a series.
    """
    recent = metrics[-guards.patience :]
    if len(recent) == guards.patience:
        _check_gradients(recent, guards)
        _check_invalid(recent, guards)
    measured = [record["entropy"] for record in metrics if record["entropy"] is not None][-guards.patience :]
    if len(measured) == guards.patience:
        _check_entropy(measured, guards)


def _check_gradients(recent: Sequence[Mapping[str, Any]], guards: Guards) -> None:
    if all(record["skipped_updates"] > 0 for record in recent):
        raise TrainingDiverged(
            f"the gradient was not finite in each of the last {guards.patience} iterations; lower training.learningRate"
        )


def _check_invalid(recent: Sequence[Mapping[str, Any]], guards: Guards) -> None:
    rates, limit = [record["invalid_rate"] for record in recent], guards.max_invalid_rate
    if limit is not None and all(not rate <= limit for rate in rates):
        raise TrainingDiverged(
            f"training.guards.maxInvalidRate: {min(rates):.0%} of the answers or more were no usable tool call in "
            f"each of the last {guards.patience} iterations (limit {limit:.0%}); lower training.learningRate or raise "
            "training.rewards.invalidPenalty"
        )


def _check_entropy(measured: Sequence[float], guards: Guards) -> None:
    limit = guards.min_entropy
    if limit is not None and all(not entropy >= limit for entropy in measured):
        raise TrainingDiverged(
            f"training.guards.minEntropy: the policy's entropy was {max(measured):.3g} nats per token or less in each "
            f"of the last {guards.patience} iterations (limit {limit:g}); lower training.learningRate or raise the "
            "sampling temperature"
        )


def check_rejected(rate: float, failures: str, guards: Guards) -> None:
    """Raise :class:`TrainingDiverged` where too large a share of an iteration's answers was rejected."""
    limit = guards.max_rejected_rate
    if limit is not None and not rate <= limit:
        raise TrainingDiverged(
            f"training.guards.maxRejectedRate: {rate:.0%} of the answers cannot be trained on (limit {limit:.0%}): "
            f"{failures}"
        )


def check_mismatch(found: Mismatch, dtype: str, guards: Guards) -> None:
    """Raise :class:`TrainingDiverged` where serving and training disagree about one version: about too large a share
    of the decisions, or a little about all of them."""
    advice = "compare model.dtype and the image settings of server and trainer"
    share = guards.max_rejected_rate
    if share is not None and not found.masked_rate <= share:
        raise TrainingDiverged(
            f"training.guards.maxRejectedRate: serving and training disagree about {found.masked_rate:.0%} of the "
            f"decisions (limit {share:.0%}), by up to {found.worst:.3g} nats per token; {advice}"
        )
    if guards.max_mismatch_kl is None or found.kl is None:
        return
    limit = guards.max_mismatch_kl * MISMATCH_SCALE[dtype]
    if not found.kl <= limit:
        raise TrainingDiverged(
            f"training.guards.maxMismatchKL: serving and training disagree, KL {found.kl:.3g} nats per token (limit "
            f"{limit:g} in {dtype}), largest difference of a logprob {found.max_abs:.3g}; {advice}"
        )
