"""Evaluation on held-out seeds: returns with bootstrap intervals, and how often each event happened."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import AliasChoices, Field

from visionrl.crafter import own_score
from visionrl.job import DEFAULT_ENVIRONMENT, JobSpec, Model
from visionrl.rollout import (
    AbortReason,
    EnvSpec,
    PolicySpec,
    Record,
    RolloutRequest,
    RolloutResponse,
    Safety,
)
from visionrl.status import Score
from visionrl_trainer.rollout.client import AnswerRejected, TaskApp
from visionrl_trainer.rollout.intake import failure
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS, TRIES

logger = logging.getLogger(__name__)

RESAMPLES = 10_000
BATCH = 1 << 22
"""Indices that the bootstrap draws at once: 32 MB, whatever the number of episodes."""


class EpisodeScore(Model):
    """One episode of an evaluation."""

    seed: int
    score: float = Field(validation_alias=AliasChoices("score", "achievements"))
    """The episode's return; files of before call it achievements, which it is in Crafter."""
    unlocked: tuple[str, ...]
    """Events that happened."""
    turns: int
    steps: int
    """Environment steps."""
    invalid: int
    """Decisions without a usable tool call."""
    env_return: float
    """The environment's own reward, summed."""
    scores: dict[str, float] = Field(default_factory=dict)
    """The environment's other scores."""
    aborted: AbortReason | Literal["rejected"] | None = None
    """Why the episode was cut short, or that no usable answer came."""
    failed: bool = False
    """Whether a failure of server or task app ended it, and no limit of the job: it says nothing about the policy."""

    @classmethod
    def nothing(cls, seed: int) -> EpisodeScore:
        """Of a seed for which no usable answer came."""
        return cls(
            seed=seed,
            score=0,
            unlocked=(),
            turns=0,
            steps=0,
            invalid=0,
            env_return=0.0,
            aborted="rejected",
            failed=True,
        )


class EvaluationFailed(RuntimeError):
    """Most seeds could not be played; the message gives the last reason."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one policy."""

    policy: str
    episodes: tuple[EpisodeScore, ...]
    """In the order of the seeds."""
    failed: int = 0
    """Seeds that were left out, because no try to play them succeeded."""
    env_name: str = DEFAULT_ENVIRONMENT

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(episode.seed for episode in self.episodes)

    @property
    def returns(self) -> tuple[float, ...]:
        """Of each seed's episode."""
        return tuple(float(episode.score) for episode in self.episodes)

    @property
    def rates(self) -> dict[str, float]:
        """Share of the episodes in which each event happened, the most frequent first."""
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
        """The environment's own reward of an episode."""
        return interval([episode.env_return for episode in self.episodes])

    @property
    def scores(self) -> dict[str, float]:
        """Mean of each of the environment's other scores."""
        names = dict.fromkeys(name for episode in self.episodes for name in episode.scores)
        return {name: float(np.mean([episode.scores.get(name, 0.0) for episode in self.episodes])) for name in names}

    def summary(self) -> dict[str, object]:
        """The evaluation as an entry of ``summary.json``."""
        return {
            "policy": self.policy,
            **self.score.model_dump(),
            **own_score(self.env_name, self.rates),
            **({"scores": self.scores} if self.scores else {}),
            "invalid_rate": self.invalid_rate,
            "aborted": self.aborted,
            "failed": self.failed,
            "turns": self.turns,
            "length": self.length.mean,
            "env_return": self.env_return.mean,
            "rates": self.rates,
            "returns": list(self.returns),
            "seeds": list(self.seeds),
        }


async def evaluate(
    taskapp: TaskApp,
    spec: JobSpec,
    policy: PolicySpec,
    seeds: Sequence[int],
    run: str,
    on_episode: Callable[[], None] = lambda: None,
) -> EvaluationResult:
    """Play one episode per seed with this policy. ``run`` names the evaluation and makes it idempotent.

    Seeds that cannot be played, because server or task app fail in every try, are left out of the scores. Raises
    :class:`EvaluationFailed` if they are more than half of the seeds.
    """
    reasons: list[str] = []

    def on_score(score: EpisodeScore, why: str) -> None:
        on_episode()
        if score.failed:
            reasons.append(f"seed {score.seed}: {score.aborted}: {why}")

    scores = await play_seeds(taskapp, spec, policy, seeds, run, PATIENCE_SECONDS, on_score)
    played = tuple(score for score in scores if not score.failed)
    if not 2 * len(played) >= len(seeds):
        raise EvaluationFailed(f"{len(reasons)} of {len(seeds)} held-out seeds could not be played; {reasons[-1]}")
    return EvaluationResult(policy.config.model or policy.policy_name, played, len(reasons), spec.rollout.env_name)


async def play_seeds(
    taskapp: TaskApp,
    spec: JobSpec,
    policy: PolicySpec,
    seeds: Sequence[int],
    run: str,
    patience: float,
    on_score: Callable[[EpisodeScore, str], None],
) -> list[EpisodeScore]:
    """One episode per seed; scores in the order of the seeds. At most ``rollout.maxConcurrent`` of them ask for a place
    at the task app at once, so that the training beside gets every other one.

    An episode that a failure of server or task app ends is replayed under another ``run_id``, up to ``TRIES`` times.
    ``on_score`` gets each score as its episode ends, and why it was aborted (or an empty text). Raises what
    :meth:`TaskApp.rollout` raises for failures that last, as a group.
    """
    slots = asyncio.Semaphore(spec.rollout.max_concurrent)

    async def play(seed: int) -> EpisodeScore:
        score, why = EpisodeScore.nothing(seed), ""
        for attempt in range(TRIES):
            request = _request(spec, policy, seed, f"{run}/s{seed}" + (f"/r{attempt}" if attempt else ""))
            try:
                async with slots:
                    response = await taskapp.rollout(request, patience)
                score, why = episode_score(seed, response), response.abort_message or ""
            except AnswerRejected as error:
                score, why = EpisodeScore.nothing(seed), str(error)
                await taskapp.forget(request.run_id)
            if not score.failed:
                break
            logger.warning("%s failed: %s: %s", request.run_id, score.aborted, why)
        on_score(score, why)
        return score

    async with asyncio.TaskGroup() as tasks:
        played = [tasks.create_task(play(seed)) for seed in seeds]
    return [task.result() for task in played]


def _request(spec: JobSpec, policy: PolicySpec, seed: int, run_id: str) -> RolloutRequest:
    return RolloutRequest(
        run_id=run_id,
        mode="eval",
        env=EnvSpec(env_name=spec.rollout.env_name, config=spec.rollout.env_config, seed=seed),
        policy=policy,
        record=Record(trajectories=False),
        safety=Safety(max_ops=spec.rollout.max_ops, max_time_s=spec.rollout.max_time_s),
    )


def episode_score(seed: int, response: RolloutResponse) -> EpisodeScore:
    """The score of a played episode. Raises :class:`visionrl_trainer.rollout.client.AnswerRejected`."""
    if len(response.trajectories) != 1 or len(response.metrics.episode_returns) != 1:
        raise AnswerRejected(f"{len(response.trajectories)} trajectories instead of one")
    decisions = response.trajectories[0].decisions
    returns = [decision.reward.env for decision in decisions]
    if not math.isfinite(sum(returns) + response.metrics.episode_returns[0] + sum(response.metrics.scores.values())):
        raise AnswerRejected("a reward is not finite")
    unlocked = tuple(name for decision in decisions for name in decision.unlocked)
    return EpisodeScore(
        seed=seed,
        score=response.metrics.episode_returns[0],
        unlocked=unlocked,
        turns=len(decisions),
        steps=response.metrics.num_steps,
        invalid=sum(not decision.valid for decision in decisions),
        env_return=sum(returns),
        scores=response.metrics.scores,
        aborted=response.abort_reason,
        failed=failure(response) is not None,
    )


def interval(values: Sequence[float]) -> Score:
    """Mean of the values with its bootstrap interval."""
    low, high = bootstrap(values)
    return Score(mean=float(np.mean(values)), low=low, high=high, episodes=len(values))


def bootstrap(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), with a fixed seed: the same values, the same
    interval. The resamples are drawn in batches, which changes none of them."""
    sample = np.asarray(values, dtype=float)
    size, generator = len(sample), np.random.default_rng(0)
    rows = max(1, BATCH // size)
    batches = (min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows))
    means = np.concatenate([sample[generator.integers(size, size=(count, size))].mean(axis=1) for count in batches])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_gain(before: Sequence[float], after: Sequence[float]) -> Score:
    """Mean difference of two policies' returns on the same seeds in the same order, with its interval."""
    return interval(np.subtract(after, before).tolist())
