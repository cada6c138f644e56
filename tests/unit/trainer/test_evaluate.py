"""Scores carry honest intervals."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.test_intake import decision, response
from visionrl.crafter import crafter_score
from visionrl.job import JobSpec, PolicyModel, Training
from visionrl.rollout import PolicyConfig, PolicySpec, RolloutRequest, RolloutResponse
from visionrl_trainer.rollout import evaluate as evaluation
from visionrl_trainer.rollout.client import AnswerRejected, TaskApp
from visionrl_trainer.rollout.evaluate import (
    EvaluationFailed,
    EvaluationResult,
    bootstrap,
    evaluate,
    paired_gain,
)
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


def test_the_interval_is_the_same_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).poisson(5.0, size=96).tolist()
    whole = bootstrap(values)
    monkeypatch.setattr(evaluation, "BATCH", 1000)
    assert bootstrap(values) == whole


def test_an_interval_of_thousands_of_episodes_needs_little_memory() -> None:
    tracemalloc.start()
    try:
        bootstrap(np.random.default_rng(4).poisson(5.0, size=4000).tolist())
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


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


class StandIn(TaskApp):
    """Four achievements an episode; ``failing`` seeds fail in their first ``times`` tries."""

    def __init__(self, failing: set[int], times: int, reason: str = "turn_timeout") -> None:
        self.failing, self.times, self.reason = failing, times, reason
        self.asked: list[str] = []
        self.forgotten: list[str] = []

    async def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        self.asked.append(request.run_id)
        tries = sum(f"/s{request.env.seed}" in run_id for run_id in self.asked)
        if request.env.seed not in self.failing or tries > self.times:
            return response([decision(unlocked=["collect_wood", "place_table", "wake_up", "collect_drink"])], score=4.0)
        if self.reason == "unreadable":
            raise AnswerRejected("invalid JSON")
        return response([]).model_copy(update={"aborted": True, "abort_reason": self.reason})


async def played(taskapp: TaskApp) -> EvaluationResult:
    spec = JobSpec(model=PolicyModel(base="tiny"), training=Training(iterations=1))
    policy = PolicySpec(config=PolicyConfig(model="crafter-v000001"))
    return await evaluate(taskapp, spec, policy, range(8), "e")


@pytest.mark.parametrize("reason", ["turn_timeout", "inference_error", "max_time", "cancelled", "unreadable"])
async def test_an_outage_is_waited_out_and_is_no_score(reason: str) -> None:
    taskapp = StandIn({1, 3, 5, 7}, times=2, reason=reason)
    found = await played(taskapp)
    assert (found.score.mean, found.score.episodes, found.failed) == (4.0, 8, 0)
    assert len(set(taskapp.asked)) == 8 + 2 * 4
    assert len(taskapp.forgotten) == (8 if reason == "unreadable" else 0)


async def test_seeds_that_cannot_be_played_are_left_out_and_counted() -> None:
    found = await played(StandIn({1, 3}, times=99))
    assert (found.score.mean, found.seeds, found.failed) == (4.0, (0, 2, 4, 5, 6, 7), 2)
    assert found.summary()["seeds"] == [0, 2, 4, 5, 6, 7]


async def test_an_evaluation_of_which_most_failed_is_none() -> None:
    with pytest.raises(EvaluationFailed, match=r"5 of 8 held-out seeds could not be played; .*: turn_timeout"):
        await played(StandIn({0, 1, 2, 3, 4}, times=99))


async def test_an_episode_cut_at_max_ops_counts_as_it_was_played() -> None:
    found = await played(StandIn({1}, times=99, reason="max_ops"))
    assert (found.score.mean, found.aborted, found.failed) == (3.5, 1, 0)
