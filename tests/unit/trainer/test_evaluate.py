"""Scores carry honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl_trainer.rollout.evaluate import bootstrap, crafter_score, paired_gain
from visionrl_trainer.rollout.sampler import training_seeds


@given(st.lists(st.integers(0, 22), min_size=2, max_size=50))
def test_the_interval_holds_the_mean_and_repeats_itself(values: list[int]) -> None:
    low, high = bootstrap(values)
    assert low <= np.mean(values) + 1e-9
    assert high >= np.mean(values) - 1e-9
    assert bootstrap(values) == (low, high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap(generator.poisson(5.0, size=60).tolist())
        hits += low <= 5.0 <= high
    assert 180 <= hits <= 200


def test_a_paired_gain_is_sharper_than_the_scores_it_compares() -> None:
    generator = np.random.default_rng(2)
    before = generator.poisson(6.0, size=100)
    after = before + generator.integers(0, 3, size=100)
    gain = paired_gain(before.tolist(), after.tolist())
    assert gain.mean == pytest.approx(np.mean(after - before))
    assert gain.low > 0.7
    low, high = bootstrap(after.tolist())
    assert gain.high - gain.low < high - low


def test_the_crafter_score_of_a_perfect_player_is_a_hundred() -> None:
    assert crafter_score({str(n): 1.0 for n in range(22)}) == pytest.approx(100)
    assert crafter_score({}) == 0


def test_training_seeds_are_a_function_of_job_and_iteration_away_from_evaluation() -> None:
    assert training_seeds(0, 3, 8) == training_seeds(0, 3, 8)
    assert training_seeds(0, 3, 8) != training_seeds(0, 4, 8)
    assert min(training_seeds(0, 3, 800)) >= 1_000_000
