"""A run that has come apart is stopped with the guard's name and what to change."""

from __future__ import annotations

import pytest

from visionrl.job import Guards
from visionrl_trainer.algo.early_stopping import TrainingDiverged, check, check_mismatch


def metrics(invalid: list[float], entropy: float = 1.0) -> list[dict[str, float]]:
    return [{"invalid_rate": rate, "entropy": entropy} for rate in invalid]


def test_a_policy_that_forgot_the_tool_is_stopped_after_patience() -> None:
    guards = Guards(max_invalid_rate=0.5, patience=3)
    check(metrics([0.1, 0.9, 0.9]), guards)
    check(metrics([0.9, 0.9]), guards)
    check(metrics([0.9, 0.9, 0.9, 0.2]), guards)
    with pytest.raises(TrainingDiverged, match=r"maxInvalidRate: 60% .* last 3 iterations \(limit 50%\)"):
        check(metrics([0.1, 0.9, 0.6, 0.8]), guards)


def test_a_collapsed_policy_is_stopped_where_that_is_asked_for() -> None:
    check(metrics([0.0] * 5, entropy=0.0), Guards())
    with pytest.raises(TrainingDiverged, match="minEntropy"):
        check(metrics([0.0] * 3, entropy=0.001), Guards(min_entropy=0.01))


def test_a_mismatch_stops_at_once_unless_it_is_not_watched() -> None:
    check_mismatch(0.01, 0.5, Guards())
    check_mismatch(5.24, 9.0, Guards(maxMismatchKL=None))
    with pytest.raises(TrainingDiverged, match=r"maxMismatchKL: .* KL 5\.24 nats per token \(limit 0\.015\)"):
        check_mismatch(5.24, 9.0, Guards())
