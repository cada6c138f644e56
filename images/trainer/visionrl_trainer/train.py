"""The training run, from the base model to the summary: read it from top to bottom.

Everything between two checkpoints can be repeated: a killed run resumes from the last one with the same adapter,
optimizer state and random state, and requests the same start states.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import torch

from visionrl import tracing
from visionrl.adapters import Version
from visionrl.checks import evaluation_seeds, policy_iterations, runs_inference, runs_task_app
from visionrl.component import ComponentContext, ConfigurationError
from visionrl.durable import write_atomically
from visionrl.job import Job
from visionrl.status import Score
from visionrl_trainer.algo.advantages import with_advantages
from visionrl_trainer.algo.arrival import prepare
from visionrl_trainer.algo.early_stopping import check, check_rejected, watched
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.update import update
from visionrl_trainer.evaluator import Evaluator
from visionrl_trainer.model.compute import compute
from visionrl_trainer.model.device import training_device
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.preparation import Preparation
from visionrl_trainer.report.facts import facts
from visionrl_trainer.report.films import FilmMaker
from visionrl_trainer.report.not_essential import not_essential
from visionrl_trainer.report.progress import Meter
from visionrl_trainer.report.record import batch_record
from visionrl_trainer.report.summary import summarise
from visionrl_trainer.rollout.ahead import Rollouts
from visionrl_trainer.rollout.batch import Group, Sample
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.meet import meet
from visionrl_trainer.rollout.sampler import Batch, Sampler
from visionrl_trainer.state.background import BackgroundWriter
from visionrl_trainer.state.run import Evaluated, RunState, RunStore
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.service import StatusPublisher
from visionrl_trainer.sync.weight_sync import WeightSync
from visionrl_trainer.tracking import Trackers

logger = logging.getLogger(__name__)

SHOWN = (
    "reward",
    "mismatch_kl",
    "entropy",
    "clip_fraction",
    "ratio_mean",
    "ratio_max",
    "advantage_std",
    "zero_variance_groups",
    "invalid_rate",
    "rejected_rate",
    "masked_rate",
    "grad_norm",
    "staleness",
    "trainer_idle",
    "server_idle",
)
"""Metrics of the last iteration that the status shows, too."""


async def run(context: ComponentContext, job: Job, publisher: StatusPublisher) -> None:
    """Train to the end. Raises :class:`visionrl.component.ConfigurationError` where a retry would fail again, anything
    else where it may succeed."""
    device = training_device(wants_gpu=job.spec.trainer.gpu is not None)
    folder = RunFolder(context.run_dir)
    await folder.own()
    folder.accept(job)
    with not_essential(str(folder.facts_file)):
        write_atomically(folder.facts_file, json.dumps(await asyncio.to_thread(facts), indent=2))
    publisher.report_file = folder.report_file
    meter = Meter(publisher, total=policy_iterations(job.spec))
    headers = {"Authorization": f"Bearer {context.key}"}
    taskapp_key = context.key if runs_task_app(job.spec) else context.taskapp_key
    async with (
        TaskApp(context.taskapp_url, taskapp_key, job.spec.rollout.max_concurrent) as taskapp,
        httpx.AsyncClient(base_url=context.inference_url, headers=headers, timeout=120, trust_env=False) as inference,
    ):
        await meet(taskapp, job.spec, publisher)
        preparation = Preparation(job, folder, device, taskapp, publisher, meter)
        base = await preparation.base(context.cache_dir)
        policy = await compute(Policy.load, base, job.spec.model.dtype, device)
        policy.add_adapter(job.spec.model.lora, job.spec.training.seed)
        await _Run(context, job, preparation, policy, inference).train()


class _Run:
    """The parts of a run, and its state."""

    state: RunState
    history: list[Mapping[str, Any]]
    """Of all iterations, what the guards look at."""
    weights: str | None
    """The version that the policy has the weights of; ``None`` between an update and its publication."""

    def __init__(
        self,
        context: ComponentContext,
        job: Job,
        preparation: Preparation,
        policy: Policy,
        inference: httpx.AsyncClient,
    ) -> None:
        spec, training = job.spec, job.spec.training
        self.context, self.job, self.preparation, self.policy = context, job, preparation, policy
        self.folder, self.meter = preparation.folder, preparation.meter
        self.publisher, self.taskapp = preparation.publisher, preparation.taskapp
        self.store = RunStore(self.folder, job.name, training.keep_checkpoints)
        self.weight_sync = WeightSync(self.store.adapters, inference, spec, self.publisher)
        self.taskapp.proof = self.weight_sync.admit
        self.optimizer = adapter_optimizer(policy.trainable(), training.learning_rate, training.weight_decay)
        self.shuffle = torch.Generator().manual_seed(training.seed)
        self.expect = policy.image_tokens(spec.rollout.env_config.image_size)
        self.rollouts = Rollouts(
            Sampler(self.taskapp, spec, job.name, context.inference_url, self.expect, self.meter.episode, self._arrived)
        )
        self.writer = BackgroundWriter()
        """Of checkpoints."""
        self.films = FilmMaker(self.folder.films)
        self.trackers = Trackers(job, self.folder.root)
        self.evaluator = Evaluator(
            self.taskapp,
            context.inference_url,
            self.expect.banned_ids,
            self.folder,
            self.writer,
            self.meter,
            self.trackers,
        )
        self.sync_seconds = 0.0

    async def train(self) -> None:
        """From the last checkpoint, or from the start, to the summary."""
        resumed = await compute(self.store.resume, self.policy, self.optimizer, self.shuffle)
        self.state = resumed or await self._begin()
        self.weights = self.state.version
        self.folder.warm_start.forget_checkpoints()
        if self.state.reference is not None:
            await compute(self.policy.set_reference, self.store.reference(self.state))
        records = self.folder.metrics.records()
        self.history = [watched(record) for record in records]
        self._report_state(records[-1:])
        await self._sync()
        try:
            unfinished = self.store.unfinished_evaluation(self.state)
            if unfinished is not None and evaluation_seeds(self.job.spec):
                self.evaluator.start(self.job.spec, unfinished)
            while True:
                self.evaluator.check()
                total = self._refresh()
                if self.evaluator.is_due(self.job.spec, self.state, total):
                    await self._evaluate()
                if self.state.iteration >= total:
                    break
                with tracing.span("iteration", iteration=self.state.iteration + 1):
                    await self._iterate()
            await self._evaluation_finished()
            await self._checkpoint()
            await self.writer.finished()
        finally:
            await self.evaluator.close()
            await self.rollouts.close()
            await self.films.close()
            await asyncio.to_thread(self.trackers.close)
            await self.writer.close()
        self._finish()

    async def _begin(self) -> RunState:
        """The state before the first iteration, in a checkpoint."""
        warm_start = self.job.spec.training.warm_start
        warm = warm_start is not None and warm_start.trains == "adapter"
        if warm:
            await self.preparation.warm_start(self.policy)
        version = await compute(self.store.publish, self.policy)
        compares = warm and self.job.spec.algorithm.kl_coefficient > 0
        self.state = RunState(version=version.name, reference=version.name if compares else None)
        await self._checkpoint()
        await self.writer.finished()
        return self.state

    async def _iterate(self) -> None:
        """Sample, learn, note, publish, checkpoint, serve. In this order, a checkpoint always has a published version,
        and a kill at any point repeats whole iterations. The checkpoint is written during what follows, up to the next
        iteration's version."""
        started, spec, iteration = time.monotonic(), self.job.spec, self.state.iteration
        busy = self.taskapp.busy_seconds
        self.publisher.update(phase="Training")
        with self.meter.phase("rollout", f"iteration {iteration + 1}: playing"):
            batch = await self.rollouts.take(iteration, self.state.version)
        played = time.monotonic()
        ahead = min(iteration + 1 + spec.training.max_staleness, policy_iterations(spec))
        self.rollouts.start(range(iteration + 1, ahead), self.state.version)
        with self.meter.phase("update", f"iteration {iteration + 1}: learning from {len(batch.episodes)} episodes"):
            samples, learned = await compute(self._learn, batch)
        seconds = time.monotonic() - started
        self.films.start(batch, samples, iteration - learned["staleness"])
        times: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": seconds,
            "sync_seconds": self.sync_seconds,
            "phase_seconds": self.meter.lap(),
            "trainer_idle": (played - started) / seconds,
            "server_idle": max(0.0, 1 - (self.taskapp.busy_seconds - busy) / seconds),
        }
        record = {"iteration": iteration + 1, "version": batch.version, **times, **learned}
        self.folder.metrics.append(record)
        self.trackers.log("training", record, iteration + 1)
        self.history.append(watched(record))
        check(self.history, spec.training.guards)
        with self.meter.phase("sync", f"iteration {iteration + 1}: publishing the new policy"):
            await self.writer.finished()
            self.state = self._after(record, await compute(self._publish))
            if self.state.iteration % spec.training.checkpoint_every == 0:
                await self._checkpoint()
            await self._sync()
        self._report_iteration(record, time.monotonic() - started)

    async def _arrived(self, iteration: int, batch: Batch, group: Group) -> Group:
        """Compute what can be computed of a group before the update, in the time that others are still played."""
        return await compute(self._prepare, iteration, batch, group)

    def _prepare(self, iteration: int, batch: Batch, group: Group) -> Group:
        """Runs in a thread, between updates. The update needs logprobs under the weights that sampled, where they are
        not what it computes first anyway: where it takes several steps, or the batch was played ahead."""
        spec, state = self.job.spec, self.state
        is_ahead = (batch.version, iteration) != (state.version, state.iteration)
        with_logprobs = is_ahead or spec.training.updates_per_iteration > 1
        group, features = prepare(self.policy, group, batch.frames, spec, with_logprobs, self._played_by(batch))
        if iteration <= state.iteration + 1:  # several batches' would fill the device: the update computes those again
            batch.features |= features
        return group

    def _played_by(self, batch: Batch) -> Path | None:
        """The adapter that sampled, where the policy has other weights."""
        return None if batch.version == self.weights else self.store.adapters.root / batch.version

    def _publish(self) -> Version:
        """Runs in a thread."""
        version = self.store.publish(self.policy)
        self.weights = version.name
        return version

    async def _sync(self) -> None:
        """Delete the versions that are no longer needed, and wait until the server answers as the current one."""
        started = time.monotonic()
        await compute(self.store.prune, {*self.state.versions, *self.rollouts.versions})
        if runs_inference(self.job.spec):
            await self.weight_sync.push(self.policy, Version.parse(self.state.version))
        self.sync_seconds = time.monotonic() - started

    def _after(self, record: dict[str, Any], version: Version) -> RunState:
        """The state after an iteration, whose policy was published as ``version``."""
        state = self.state
        return state.model_copy(
            update={
                "iteration": record["iteration"],
                "version": version.name,
                "episodes": state.episodes + record["episodes"],
                "turns": state.turns + record["turns"],
                "tokens": state.tokens + record["tokens"],
                "worst_mismatch": max(state.worst_mismatch, record["mismatch_max"] or 0.0),
                "mean_mismatch": record["mismatch_mean"] or 0.0,
            }
        )

    def _report_iteration(self, record: dict[str, Any], seconds: float) -> None:
        total, done = policy_iterations(self.job.spec), self.state.iteration
        self.meter.iteration(done, total, seconds, self.job.spec.evaluation)
        self.meter.set(**{name: record[name] for name in SHOWN}, sync_seconds=round(self.sync_seconds, 3))
        trained = (
            f"mismatch {record['mismatch_max']:.1e}, entropy {record['entropy']:.2f}, "
            f"clipped {record['clip_fraction']:.1%}"
            if record["updates"]
            else "no update"
        )
        logger.info(
            "iteration %d/%d: return %.2f, %.0f %% invalid, %s, %.1f s",
            self.state.iteration,
            total,
            record["reward"],
            100 * record["invalid_rate"],
            trained,
            seconds,
        )

    def _learn(self, batch: Batch) -> tuple[Sequence[Sample], dict[str, Any]]:
        """Update the policy; returns the samples with their advantages, and the iteration's metrics. Runs in a
        thread."""
        spec = self.job.spec
        check_rejected(batch.rejected_rate, batch.failures(), spec.training.guards)
        samples = with_advantages(batch.groups, spec.algorithm)
        played_by = self._played_by(batch)
        features, batch.features = batch.features, {}  # films keep the batch
        self.weights = None
        stats = update(self.policy, self.optimizer, samples, batch.frames, spec, self.shuffle, played_by, features)
        return samples, {**batch_record(batch, samples, Version.parse(self.state.version)), **asdict(stats)}

    async def _evaluate(self) -> None:
        """Begin to evaluate the current version, once the evaluation before it is over."""
        await self._evaluation_finished()
        evaluated = Evaluated(version=self.state.version, iteration=self.state.iteration)
        self.state = self.state.model_copy(update={"evaluated": evaluated})
        await self._checkpoint()
        self.evaluator.start(self.job.spec, evaluated)

    async def _evaluation_finished(self) -> None:
        """Wait for the evaluation that is played beside the training."""
        if self.evaluator.is_playing:
            self.publisher.update(phase="Evaluating")
            with self.meter.phase("evaluation", "playing the held-out seeds"):
                await self.evaluator.finished()
        self.evaluator.check()

    async def _checkpoint(self) -> None:
        """Begin to write the state to resume from; it is kept once the writer has finished."""
        seconds = {name: self.state.seconds.get(name, 0.0) + s for name, s in self.meter.seconds.items()}
        self.state = self.state.model_copy(update={"seconds": {**self.state.seconds, **seconds}})
        self.meter.seconds.clear()
        await self.writer.finished()
        snapshot = await compute(self.store.snapshot, self.state, self.policy, self.optimizer, self.shuffle)
        if snapshot is not None:
            self.writer.start(self.store.checkpoint, snapshot)

    def _refresh(self) -> int:
        """Read the fields that may change during a run, iterations and evaluation; returns the total iterations."""
        try:
            now = self.context.job().spec
        except ConfigurationError as error:
            logger.warning("the changed job is not used: %s", error)
            return policy_iterations(self.job.spec)
        training = self.job.spec.training.model_copy(update={"iterations": now.training.iterations})
        spec = self.job.spec.model_copy(update={"training": training, "evaluation": now.evaluation})
        self.job = self.job.model_copy(update={"spec": spec})
        return policy_iterations(spec)

    def _report_state(self, last: Sequence[Mapping[str, Any]]) -> None:
        """Fill the report, which is empty after a restart. ``last``: the record of the last iteration, if there is
        one."""
        self.meter.set(iteration=self.state.iteration, episodes=self.state.episodes)
        for record in last:
            self.meter.set(**{name: record.get(name) for name in SHOWN})
        for result in self.store.evaluations.records():
            score = Score(**{name: result[name] for name in Score.model_fields})
            self.meter.evaluation(result["iteration"], score, result.get("seconds", 0.0))

    def _finish(self) -> None:
        """Write the summary."""
        metrics, evaluations = self.folder.metrics.records(), self.store.evaluations.records()
        self.folder.write_summary(summarise(self.job, self.state, metrics, evaluations))
        self.publisher.update(phase="Complete", message="")
