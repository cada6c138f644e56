"""Evaluations of a run: each plays the held-out seeds with one version, while the training goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from visionrl import tracing
from visionrl.checks import evaluation_seeds
from visionrl.job import JobSpec
from visionrl.rollout import PolicySpec
from visionrl_trainer.report import films
from visionrl_trainer.report.not_essential import not_essential
from visionrl_trainer.report.progress import Meter
from visionrl_trainer.rollout import evaluate
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.sampler import policy_spec
from visionrl_trainer.state.background import BackgroundWriter
from visionrl_trainer.state.run import Evaluated, RunState
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.tracking import Trackers

logger = logging.getLogger(__name__)


@dataclass
class Evaluator:
    """Evaluates one version at a time, and keeps the results."""

    taskapp: TaskApp
    inference_url: str
    banned_ids: Collection[int]
    folder: RunFolder
    checkpoints: BackgroundWriter
    meter: Meter
    trackers: Trackers
    _playing: asyncio.Task[None] | None = None

    @property
    def is_playing(self) -> bool:
        return self._playing is not None and not self._playing.done()

    def is_due(self, spec: JobSpec, state: RunState, total: int) -> bool:
        """Whether the job evaluates the state's iteration, and no attempt has begun to."""
        if not evaluation_seeds(spec):
            return False
        begun = self.folder.evaluations.indices()
        if state.evaluated is not None:
            begun.add(state.evaluated.iteration)
        every, iteration = spec.evaluation.every_iterations, state.iteration
        at_last, at_multiple = iteration >= total, every > 0 and iteration % every == 0
        return iteration not in begun and (not begun or at_last or at_multiple)

    def start(self, spec: JobSpec, evaluated: Evaluated) -> None:
        """Begin to evaluate a published version; the one before must have :meth:`finished`."""
        assert not self.is_playing, "one evaluation at a time"
        self._playing = asyncio.create_task(self._evaluate(spec, evaluated))

    def check(self) -> None:
        """Raise what ended the evaluation, if anything did.

        That is :class:`~visionrl_trainer.rollout.evaluate.EvaluationFailed`, or as a group what
        :meth:`~visionrl_trainer.rollout.client.TaskApp.rollout` raises.
        """
        if self._playing is not None and self._playing.done():
            self._playing.result()

    async def finished(self) -> None:
        """Return when nothing is being evaluated. Raises like :meth:`check`."""
        if self._playing is not None:
            await self._playing

    async def close(self) -> None:
        """Stop."""
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)

    async def _evaluate(self, spec: JobSpec, evaluated: Evaluated) -> None:
        seeds, policy, iteration = evaluation_seeds(spec), self._policy(spec, evaluated.version), evaluated.iteration
        logger.info("evaluation at iteration %d: %s plays %d held-out seeds", iteration, evaluated.version, len(seeds))
        started = time.monotonic()
        self.meter.evaluation_begins(len(seeds))
        with tracing.span("evaluation", iteration=iteration):
            found = await evaluate.evaluate(
                self.taskapp,
                spec,
                policy,
                seeds,
                f"{evaluated.version}/evaluation",
                self.meter.evaluation_episode,
            )
            seconds = time.monotonic() - started
            await self.checkpoints.finished()  # or a crash would leave the result of a version that is gone
            self.folder.evaluations.append({"iteration": iteration, "seconds": round(seconds, 3), **found.summary()})
            self.trackers.log("evaluation", found.summary(), iteration)
            self.meter.evaluation(iteration, found.score, seconds)
            with not_essential("the film"):
                film = await films.record(self.taskapp, spec, policy, iteration)
                await asyncio.to_thread(films.save, film, self.folder.films)
        logger.info(
            "evaluation at iteration %d: return %.2f [%.2f, %.2f] on %d seeds, %.1f %% invalid, %.1f s",
            iteration,
            found.score.mean,
            found.score.low,
            found.score.high,
            found.score.episodes,
            100 * found.invalid_rate,
            seconds,
        )

    def _policy(self, spec: JobSpec, version: str) -> PolicySpec:
        """The version with the evaluation's own settings."""
        policy = policy_spec(spec, version, self.inference_url, self.banned_ids)
        settings = {"top_p": spec.rollout.policy_config.top_p}
        if spec.evaluation.temperature is not None:
            settings["temperature"] = spec.evaluation.temperature
        return policy.model_copy(update={"config": policy.config.model_copy(update=settings)})
