"""A run whose training has failed is stopped with the guard's name and what to change."""

from __future__ import annotations

import math
from typing import Any

import pytest

from visionrl.job import Guards
from visionrl_trainer.algo.early_stopping import TrainingDiverged, check, check_mismatch, check_rejected
from visionrl_trainer.algo.mismatch import Mismatch

NAN = math.nan


def metrics(invalid: list[float], entropy: float | None = 1.0, skipped: int = 0) -> list[dict[str, Any]]:
    return [{"invalid_rate": rate, "entropy": entropy, "skipped_updates": skipped} for rate in invalid]


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


def test_iterations_that_trained_on_nothing_do_not_hide_a_collapse() -> None:
    series = metrics([0.0] * 2, entropy=0.001) + metrics([0.0], entropy=None) + metrics([0.0], entropy=0.001)
    with pytest.raises(TrainingDiverged, match="minEntropy"):
        check(series, Guards(min_entropy=0.01))
    check(metrics([0.0] * 5, entropy=None), Guards(min_entropy=0.01))


def test_gradients_that_are_not_finite_stop_after_patience() -> None:
    check(metrics([0.0] * 2, skipped=1) + metrics([0.0]), Guards(patience=3))
    with pytest.raises(TrainingDiverged, match=r"not finite in each of the last 3 iterations; lower .*learningRate"):
        check(metrics([0.0] * 3, skipped=1), Guards(patience=3))


def test_a_mismatch_stops_at_once_unless_it_is_not_watched() -> None:
    check_mismatch(Mismatch(0.5, 0.1, 0.01, 9), "bfloat16", Guards())
    check_mismatch(Mismatch(9.0, 1.0, 5.24, 9), "bfloat16", Guards(maxMismatchKL=None))
    with pytest.raises(
        TrainingDiverged, match=r"maxMismatchKL: .* KL 5\.24 nats per token \(limit 0\.015 in bfloat16\)"
    ):
        check_mismatch(Mismatch(9.0, 1.0, 5.24, 9), "bfloat16", Guards())


def test_float32_is_held_to_a_hundredth_of_the_mismatch() -> None:
    check_mismatch(Mismatch(1e-3, 1e-4, 1e-4, 9), "float32", Guards())
    with pytest.raises(TrainingDiverged, match=r"limit 0\.00015 in float32"):
        check_mismatch(Mismatch(0.1, 0.1, 0.01, 9), "float32", Guards())


def test_too_many_masked_decisions_stop_the_run() -> None:
    check_mismatch(Mismatch(0.1, 0.1, 1e-4, decisions=9, masked=4, worst=60), "bfloat16", Guards())
    with pytest.raises(TrainingDiverged, match=r"maxRejectedRate: .* 56% of the decisions \(limit 50%\), by up to 60"):
        check_mismatch(Mismatch(0.1, 0.1, 1e-4, decisions=9, masked=5, worst=60), "bfloat16", Guards())


def test_too_many_rejected_answers_stop_the_run() -> None:
    check_rejected(0.5, "", Guards())
    check_rejected(1.0, "", Guards(max_rejected_rate=None))
    with pytest.raises(TrainingDiverged, match=r"maxRejectedRate: 60% .* \(limit 50%\): 3 rejected \(the last: why\)"):
        check_rejected(0.6, "3 rejected (the last: why)", Guards())


def test_what_is_not_a_number_breaks_every_limit() -> None:
    with pytest.raises(TrainingDiverged):
        check(metrics([NAN] * 3), Guards())
    with pytest.raises(TrainingDiverged):
        check(metrics([0.0] * 3, entropy=NAN), Guards(min_entropy=0.01))
    with pytest.raises(TrainingDiverged):
        check_mismatch(Mismatch(NAN, NAN, NAN, 9), "bfloat16", Guards())
    with pytest.raises(TrainingDiverged):
        check_rejected(NAN, "", Guards())
