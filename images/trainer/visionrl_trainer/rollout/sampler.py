"""Collecting episodes: groups from one start state, bounded concurrency, replays of failed episodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from visionrl.checks import uses_vision
from visionrl.job import FIRST_TRAINING_SEED, JobSpec
from visionrl.rollout import EnvSpec, PolicyConfig, PolicySpec, Record, RolloutRequest, Safety
from visionrl_trainer.rollout.batch import EpisodeSamples, Frame, Group, ImageTokens
from visionrl_trainer.rollout.client import AnswerRejected, TaskApp
from visionrl_trainer.rollout.intake import failure, read_episode

if TYPE_CHECKING:
    from visionrl_trainer.model.policy import ImageFeatures

logger = logging.getLogger(__name__)

TRIES = 3
"""Times that an aborted or rejected episode is played before its group continues without it."""
PATIENCE_SECONDS = 900.0
"""How long the task app or the inference server may be unavailable; loading a model takes most of it."""


class SamplingFailed(RuntimeError):
    """Too few episodes could be played; the message gives the last reasons."""


@dataclass
class Batch:
    """An iteration's groups and their frames by hash."""

    version: str
    """Adapter that was requested."""
    groups: list[Group] = field(default_factory=list)
    frames: dict[str, Frame] = field(default_factory=dict)
    features: dict[str, ImageFeatures] = field(default_factory=dict)
    """Of the frames that are encoded already."""
    accepted: int = 0
    """Episodes that passed the checks, those of replaced groups included."""
    aborted: int = 0
    """Episodes that were aborted, replays included."""
    rejected: int = 0
    """Answers that were rejected, replays included."""
    last_failures: dict[str, str] = field(default_factory=dict)
    """Why the last episode was ``aborted`` and the last answer ``rejected``."""
    resampled: int = 0
    """Groups that were replaced because all their episodes earned the same."""

    @property
    def episodes(self) -> list[EpisodeSamples]:
        return [episode for group in self.groups for episode in group.episodes]

    @property
    def rejected_rate(self) -> float:
        """Share of the answers that were rejected."""
        return self.rejected / max(1, self.rejected + self.accepted)

    def failures(self) -> str:
        """What went wrong, for people: ``2 aborted (the last: …)``."""
        counts = {"aborted": self.aborted, "rejected": self.rejected}
        return ", ".join(f"{counts[kind]} {kind} (the last: {why})" for kind, why in self.last_failures.items())


def training_seeds(job_seed: int, iteration: int, groups: int, trial: int = 0) -> list[int]:
    """Start states of an iteration: a function of the job's seed alone, so a resumed run draws the same."""
    generator = np.random.default_rng([job_seed, iteration, trial])
    return [int(seed) for seed in generator.integers(FIRST_TRAINING_SEED, 2**31, size=groups)]


def policy_config(spec: JobSpec, **changes: object) -> PolicyConfig:
    """The job's policy settings for the task app. It knows adapters by name only, so ``use_vision`` is explicit.
    Training samples the whole distribution (top_p 1)."""
    settings = {**spec.rollout.policy_config.model_dump(), "top_p": 1.0, "use_vision": uses_vision(spec)}
    return PolicyConfig(**{**settings, **changes})


def policy_spec(spec: JobSpec, model: str, inference_url: str, banned: Iterable[int]) -> PolicySpec:
    """The job's policy with one adapter."""
    config = policy_config(spec, model=model, inference_url=inference_url, banned_token_ids=sorted(banned))
    return PolicySpec(policy_name=f"{spec.rollout.env_name}-react", config=config)


async def _as_it_is(iteration: int, batch: Batch, group: Group) -> Group:
    return group


class Sampler:
    """Plays training episodes.

    ``on_episode`` is called at the end of each, and a group is what ``on_group`` makes of it while others are still
    being played. At most ``rollout.maxConcurrent`` episodes ask for a place at the task app at once, so that an
    evaluation beside gets every other one.
    """

    def __init__(
        self,
        taskapp: TaskApp,
        spec: JobSpec,
        job_name: str,
        inference_url: str,
        expect: ImageTokens,
        on_episode: Callable[[], None] = lambda: None,
        on_group: Callable[[int, Batch, Group], Awaitable[Group]] = _as_it_is,
    ) -> None:
        self.taskapp, self.spec, self.job_name = taskapp, spec, job_name
        self.inference_url, self.expect = inference_url, expect
        self.on_episode, self.on_group = on_episode, on_group
        self._slots = asyncio.Semaphore(spec.rollout.max_concurrent)

    async def collect(self, iteration: int, version: str) -> Batch:
        """Play the iteration's groups: ``groupSize`` episodes from each of its start states.

        A group that keeps fewer than two episodes is dropped. With ``training.maxResampling``, groups whose episodes
        all earned the same are replaced by other start states, as often as that says (dynamic sampling, DAPO,
        arXiv:2503.14476, §3.2). Raises :class:`SamplingFailed` when no group is left.
        """
        training, batch = self.spec.training, Batch(version)
        wanted = training.groups_per_iteration
        for trial in range(1 + training.max_resampling):
            seeds = training_seeds(training.seed, iteration, wanted - len(batch.groups), trial)
            played = await self._groups(batch, iteration, trial, seeds)
            last = trial == training.max_resampling
            batch.groups += [group for group in played if last or group.has_variance]
            batch.resampled += 0 if last else sum(not group.has_variance for group in played)
            if len(batch.groups) == wanted:
                break
        if not batch.groups:
            raise SamplingFailed(f"iteration {iteration}: no group kept two episodes: {batch.failures()}")
        return batch

    async def _groups(self, batch: Batch, iteration: int, trial: int, seeds: Sequence[int]) -> list[Group]:
        async with asyncio.TaskGroup() as tasks:
            played = [
                tasks.create_task(self._group(batch, iteration, f"i{iteration}/t{trial}/g{g}", seed))
                for g, seed in enumerate(seeds)
            ]
        return [group for task in played if (group := task.result()) is not None]

    async def _group(self, batch: Batch, iteration: int, place: str, seed: int) -> Group | None:
        """The episodes from one start state; ``None`` if fewer than two are kept."""
        async with asyncio.TaskGroup() as tasks:
            played = [
                tasks.create_task(self._episode(batch, f"{place}/e{e}", seed))
                for e in range(self.spec.training.group_size)
            ]
        episodes = tuple(episode for task in played if (episode := task.result()) is not None)
        return await self.on_group(iteration, batch, Group(seed, episodes)) if len(episodes) >= 2 else None

    async def _episode(self, batch: Batch, place: str, seed: int) -> EpisodeSamples | None:
        """One member of a group; ``None`` after ``TRIES`` failures.

        An episode that was aborted and an answer that is rejected are replayed under another ``run_id``: the task app
        would repeat its answer for the same one, also after a restart of the trainer.
        """
        for attempt in range(TRIES):
            request = self._request(f"{self.job_name}/{batch.version}/{place}/r{attempt}", batch.version, seed)
            try:
                async with self._slots:
                    response = await self.taskapp.rollout(request, PATIENCE_SECONDS)
                if why := failure(response):
                    batch.aborted += 1
                    batch.last_failures["aborted"] = why
                    logger.warning("%s was aborted: %s", request.run_id, why)
                    continue
                context = self.spec.inference.vllm.max_model_len
                # In a thread: frames take milliseconds each, and other episodes' answers arrive meanwhile.
                episode = await asyncio.to_thread(read_episode, response, request, self.expect, context, batch.frames)
            except AnswerRejected as error:
                batch.rejected += 1
                batch.last_failures["rejected"] = str(error)
                logger.warning("%s was rejected: %s", request.run_id, error)
                await self.taskapp.forget(request.run_id)
                continue
            batch.accepted += 1
            self.on_episode()
            return episode
        return None

    def _request(self, run_id: str, version: str, seed: int) -> RolloutRequest:
        rollout = self.spec.rollout
        return RolloutRequest(
            run_id=run_id,
            mode="rl",
            env=EnvSpec(env_name=rollout.env_name, config=rollout.env_config, seed=seed),
            policy=policy_spec(self.spec, version, self.inference_url, self.expect.banned_ids),
            record=Record(trajectories=False, logprobs=True, images=True),
            safety=Safety(max_ops=rollout.max_ops, max_time_s=rollout.max_time_s),
            rewards=self.spec.training.rewards,
            training_session_id=self.job_name,
        )
