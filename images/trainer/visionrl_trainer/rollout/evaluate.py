"""Evaluation on held-out seeds: unique achievements with bootstrap intervals, success rates, Crafter score."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from visionrl.job import JobSpec, Model
from visionrl.rollout import AbortReason, EnvSpec, PolicySpec, Record, RolloutRequest, RolloutResponse, Safety
from visionrl.status import Score
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS

RESAMPLES = 10_000
ACHIEVEMENTS = 22


class EpisodeScore(Model):
    """One episode of an evaluation."""

    seed: int
    achievements: int
    """Unique achievements: the episode's return."""
    unlocked: tuple[str, ...]
    turns: int
    steps: int
    """Environment steps."""
    invalid: int
    """Decisions without a usable tool call."""
    env_return: float
    """Crafter's own reward, summed."""
    aborted: AbortReason | None = None
    """Why the episode was cut short; it counts with what it had achieved."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one policy."""

    policy: str
    episodes: tuple[EpisodeScore, ...]
    """In the order of the seeds."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(episode.seed for episode in self.episodes)

    @property
    def returns(self) -> tuple[float, ...]:
        """Unique achievements of each seed's episode."""
        return tuple(float(episode.achievements) for episode in self.episodes)

    @property
    def rates(self) -> dict[str, float]:
        """Share of the episodes that unlocked each achievement, the most frequent first."""
        unlocked = Counter(name for episode in self.episodes for name in episode.unlocked)
        ranked = sorted(unlocked.items(), key=lambda item: (-item[1], item[0]))
        return {name: count / len(self.episodes) for name, count in ranked}

    @property
    def turns(self) -> int:
        return sum(episode.turns for episode in self.episodes)

    @property
    def invalid_rate(self) -> float:
        """Share of decisions without a usable tool call."""
        return sum(episode.invalid for episode in self.episodes) / max(1, self.turns)

    @property
    def aborted(self) -> int:
        return sum(episode.aborted is not None for episode in self.episodes)

    @property
    def score(self) -> Score:
        return interval(self.returns)

    @property
    def length(self) -> Score:
        """Environment steps of an episode."""
        return interval([episode.steps for episode in self.episodes])

    @property
    def env_return(self) -> Score:
        """Crafter's own reward of an episode."""
        return interval([episode.env_return for episode in self.episodes])

    def summary(self) -> dict[str, object]:
        """The evaluation as an entry of ``summary.json``."""
        return {
            "policy": self.policy,
            **self.score.model_dump(),
            "crafter_score": crafter_score(self.rates),
            "invalid_rate": self.invalid_rate,
            "aborted": self.aborted,
            "turns": self.turns,
            "length": self.length.mean,
            "env_return": self.env_return.mean,
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
    """Play one episode per seed with this policy. ``run`` names the evaluation and makes it idempotent."""
    scores = await play_seeds(taskapp, spec, policy, seeds, run, PATIENCE_SECONDS, lambda score, abort: on_episode())
    return EvaluationResult(policy.config.model or policy.policy_name, tuple(scores))


async def play_seeds(
    taskapp: TaskApp,
    spec: JobSpec,
    policy: PolicySpec,
    seeds: Sequence[int],
    run: str,
    patience: float,
    on_score: Callable[[EpisodeScore, str], None],
) -> list[EpisodeScore]:
    """One episode per seed, ``rollout.maxConcurrent`` of them at once; scores in the order of the seeds.

    ``on_score`` gets each score as its episode ends, and why it was aborted (or an empty text). Raises what
    :meth:`TaskApp.rollout` raises, as a group.
    """
    slots = asyncio.Semaphore(spec.rollout.max_concurrent)

    async def play(seed: int) -> EpisodeScore:
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
            response = await taskapp.rollout(request, patience)
        score = episode_score(seed, response)
        on_score(score, response.abort_message or "")
        return score

    async with asyncio.TaskGroup() as tasks:
        played = [tasks.create_task(play(seed)) for seed in seeds]
    return [task.result() for task in played]


def episode_score(seed: int, response: RolloutResponse) -> EpisodeScore:
    """The score of a played episode."""
    decisions = response.trajectories[0].decisions
    unlocked = tuple(name for decision in decisions for name in decision.unlocked)
    return EpisodeScore(
        seed=seed,
        achievements=len(unlocked),
        unlocked=unlocked,
        turns=len(decisions),
        steps=response.metrics.num_steps,
        invalid=sum(not decision.valid for decision in decisions),
        env_return=sum(decision.reward.env for decision in decisions),
        aborted=response.abort_reason,
    )


def interval(values: Sequence[float]) -> Score:
    """Mean of the values with its bootstrap interval."""
    low, high = bootstrap(values)
    return Score(mean=float(np.mean(values)), low=low, high=high, episodes=len(values))


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
    return interval(np.subtract(after, before).tolist())


def crafter_score(rates: dict[str, float]) -> float:
    """Crafter's score in percent: ``exp(mean ln(1 + sᵢ)) − 1`` over all 22 achievements (Hafner 2021, §3.2)."""
    logs = [math.log1p(100 * rate) for rate in rates.values()]
    return math.expm1(sum(logs) / ACHIEVEMENTS)
