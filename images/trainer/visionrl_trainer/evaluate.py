"""Evaluation on held-out seeds: unique achievements with bootstrap intervals, success rates, Crafter score."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionrl.job import JobSpec
from visionrl.rollout import EnvSpec, PolicySpec, Record, RolloutRequest, RolloutResponse, Safety
from visionrl.status import Score
from visionrl_trainer.sampler import PATIENCE_SECONDS
from visionrl_trainer.taskapp import TaskApp

RESAMPLES = 10_000
ACHIEVEMENTS = 22


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one policy on consecutive seeds."""

    policy: str
    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    """Unique achievements of each seed's episode."""
    rates: dict[str, float]
    """Share of the episodes that unlocked each achievement."""
    invalid_rate: float
    """Share of decisions without a usable tool call."""
    aborted: int
    """Episodes that were aborted; they count with what they had."""
    turns: int

    @property
    def score(self) -> Score:
        low, high = bootstrap(self.returns)
        return Score(mean=float(np.mean(self.returns)), low=low, high=high, episodes=len(self.returns))

    def summary(self) -> dict[str, object]:
        """As it stands in ``summary.json``."""
        return {
            "policy": self.policy,
            **self.score.model_dump(),
            "crafter_score": crafter_score(self.rates),
            "invalid_rate": self.invalid_rate,
            "aborted": self.aborted,
            "turns": self.turns,
            "rates": self.rates,
            "returns": list(self.returns),
            "first_seed": self.seeds[0],
        }


async def evaluate(
    taskapp: TaskApp,
    spec: JobSpec,
    policy: PolicySpec,
    seeds: Sequence[int],
    run: str,
    on_episode: Callable[[], None] = lambda: None,
) -> EvaluationResult:
    """Play one episode a seed with this policy. ``run`` names the evaluation and makes it idempotent."""
    slots = asyncio.Semaphore(spec.rollout.max_concurrent)

    async def play(seed: int) -> RolloutResponse:
        request = RolloutRequest(
            run_id=f"{run}/s{seed}",
            mode="eval",
            env=EnvSpec(env_name=spec.rollout.env_name, config=spec.rollout.env_config, seed=seed),
            policy=policy,
            record=Record(trajectories=False),
            on_done="terminate",
            safety=Safety(max_ops=spec.rollout.max_ops, max_time_s=spec.rollout.max_time_s),
        )
        async with slots:
            response = await taskapp.rollout(request, PATIENCE_SECONDS)
        on_episode()
        return response

    async with asyncio.TaskGroup() as tasks:
        played = [tasks.create_task(play(seed)) for seed in seeds]
    return result(policy.config.model or policy.policy_name, seeds, [task.result() for task in played])


def result(policy: str, seeds: Sequence[int], responses: Sequence[RolloutResponse]) -> EvaluationResult:
    """Aggregate the played episodes."""
    decisions = [decision for response in responses for decision in response.trajectories[0].decisions]
    unlocked: Counter[str] = Counter(name for decision in decisions for name in decision.unlocked)
    return EvaluationResult(
        policy=policy,
        seeds=tuple(seeds),
        returns=tuple(response.metrics.episode_returns[0] for response in responses),
        rates={name: count / len(responses) for name, count in unlocked.most_common()},
        invalid_rate=sum(not decision.valid for decision in decisions) / max(1, len(decisions)),
        aborted=sum(response.aborted for response in responses),
        turns=len(decisions),
    )


def bootstrap(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), with a fixed seed: the same values, the same
    interval."""
    sample = np.asarray(values, dtype=float)
    generator = np.random.default_rng(0)
    means = sample[generator.integers(len(sample), size=(RESAMPLES, len(sample)))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_gain(before: Sequence[float], after: Sequence[float]) -> Score:
    """Mean difference of two policies' returns on the same seeds in the same order, with its interval."""
    gains: NDArray[np.float64] = np.subtract(after, before)
    low, high = bootstrap(gains.tolist())
    return Score(mean=float(gains.mean()), low=low, high=high, episodes=len(gains))


def crafter_score(rates: dict[str, float]) -> float:
    """Crafter's score in percent: ``exp(mean ln(1 + sᵢ)) − 1`` over all 22 achievements (Hafner 2021, §3.2)."""
    logs = [math.log1p(100 * rate) for rate in rates.values()]
    return math.expm1(sum(logs) / ACHIEVEMENTS)
