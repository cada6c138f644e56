"""Before the first rollout: the base model's directory, and what a warm start makes of model or adapter."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from visionrl.adapters import ManifestError, read_manifest
from visionrl.base_model import locate_base
from visionrl.checks import exports_base
from visionrl.component import ConfigurationError
from visionrl.job import Job
from visionrl_trainer.model.compute import compute
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.report.progress import Meter
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.sft import teacher
from visionrl_trainer.sft import train as sft
from visionrl_trainer.sft.file import read_sft
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.service import StatusPublisher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """The base model and the warm start of a run."""

    job: Job
    folder: RunFolder
    device: torch.device
    taskapp: TaskApp
    publisher: StatusPublisher
    meter: Meter

    async def base(self, cache: Path) -> Path:
        """Directory of the base that adapters are trained on. A warm start that makes a new base trains it first,
        unless an earlier attempt did. Raises :class:`visionrl.component.ConfigurationError` if there is no such
        model."""
        self._check_files()
        source = await asyncio.to_thread(locate_base, self.job, cache)
        if not exports_base(self.job.spec):
            self.publisher.update(base_ready=True)
            return source
        if not self._has_base():
            policy = await compute(Policy.load, source, self.job.spec.model.dtype, self.device, full=True)
            await self.warm_start(policy)
            await compute(sft.export, policy, source, self.folder.base)
            self.folder.warm_start.forget_checkpoints()
        self.publisher.base = self.folder.base
        self.publisher.update(base_ready=True)
        return self.folder.base

    def _has_base(self) -> bool:
        """Whether an earlier attempt completed the base, and it is undamaged. A damaged base is trained again, unless
        adapters have been trained on it."""
        base = self.folder.base
        try:
            read_manifest(base).check(base)
            return True
        except (ManifestError, FileNotFoundError) as error:
            if self.folder.has_checkpoints:
                raise ConfigurationError(
                    f"the base model that this run's adapters belong to is not whole: {error}; put {base} back, or "
                    "start over with an empty run folder (visionrl run --fresh)"
                ) from None
            if base.exists():
                logger.warning("repeating the warm start, because its result is damaged: %s", error)
            return False

    async def warm_start(self, policy: Policy) -> None:
        """Train the policy on files or on a player's episodes. The caller deletes its checkpoints, once
        what they led to is kept."""
        self.publisher.update(phase="WarmStart")
        data = await self._demonstrations()
        stopping = threading.Event()
        with self.meter.phase("warm_start", "supervised training"):
            try:
                last = await compute(
                    sft.train, policy, data, self.job.spec, self.folder.warm_start, self._tell, stopping.is_set
                )
            except asyncio.CancelledError:
                stopping.set()  # the thread finishes its step and keeps a checkpoint
                raise
        if last.validation_loss is not None:
            logger.info("the warm start ended at %.3f nats per decision on held-out data", last.validation_loss)

    def _check_files(self) -> None:
        """Report missing data files before gigabytes are downloaded."""
        settings = self.job.spec.training.warm_start
        done = self.folder.base.exists() or self.folder.has_checkpoints
        if settings is None or settings.data is None or done:
            return
        for name, file in settings.data:
            if file is not None and not Path(file).is_file():
                raise ConfigurationError(f"spec.training.warmStart.data.{name}: the trainer finds no file {file}")

    async def _demonstrations(self) -> teacher.Demonstrations:
        spec, settings = self.job.spec, self.job.spec.training.warm_start
        assert settings is not None
        if settings.data is not None:
            train, val = Path(settings.data.train), Path(settings.data.val) if settings.data.val else None
            with self.meter.phase("data", f"reading {train}"):
                data = await compute(read_sft, train, val, spec.rollout.env_config.image_size)
            logger.info("%d decisions to learn, %d held out", len(data.training), len(data.validation))
            return data
        played = 0

        def on_episode() -> None:
            nonlocal played
            played += 1
            self.publisher.update(message=f"the player plays: {played}/{settings.episodes} episodes")

        with self.meter.phase("teacher", "the player plays"):
            data = await teacher.collect(self.taskapp, spec, self.job.name, on_episode)
        logger.info(
            "%d demonstrations from %d episodes with a return of %.2f each",
            len(data.training) + len(data.validation),
            len(data.returns),
            sum(data.returns) / len(data.returns),
        )
        return data

    def _tell(self, progress: sft.SftReport) -> None:
        line = progress.line()
        self.publisher.update(message=line)
        logger.info(line)
