"""Before the first rollout: the base model's directory, and what a warm start makes of model or adapter."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from visionrl.base_model import locate_base
from visionrl.checks import exports_base
from visionrl.job import Job
from visionrl_trainer import sft, teacher
from visionrl_trainer.model import Policy
from visionrl_trainer.progress import Meter
from visionrl_trainer.runfolder import RunFolder
from visionrl_trainer.service import Bulletin
from visionrl_trainer.taskapp import TaskApp

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What getting ready needs."""

    job: Job
    folder: RunFolder
    device: torch.device
    taskapp: TaskApp
    bulletin: Bulletin
    meter: Meter

    async def base(self, cache: Path) -> Path:
        """Directory of the base that adapters are trained on; a warm start that makes one trains it first, unless it
        is there already. Raises :class:`visionrl.part.ConfigurationError` where the model does not exist."""
        source = await asyncio.to_thread(locate_base, self.job, cache)
        if not exports_base(self.job.spec):
            self.bulletin.update(base_ready=True)
            return source
        if not self.folder.base.exists():
            policy = await asyncio.to_thread(Policy.load, source, self.job.spec.model.dtype, self.device)
            await self.warm_start(policy)
            await asyncio.to_thread(sft.export, policy, source, self.folder.base)
        self.bulletin.base = self.folder.base
        self.bulletin.update(base_ready=True)
        return self.folder.base

    async def warm_start(self, policy: Policy) -> None:
        """Train the policy on the scripted player's episodes."""
        spec, settings = self.job.spec, self.job.spec.training.warm_start
        assert settings is not None
        self.bulletin.update(phase="WarmStart")
        played = 0

        def on_episode() -> None:
            nonlocal played
            played += 1
            self.bulletin.update(message=f"the scripted player plays: {played}/{settings.episodes} episodes")

        with self.meter.phase("teacher", "the scripted player plays"):
            data = await teacher.collect(self.taskapp, spec, self.job.name, on_episode)
        logger.info(
            "%d demonstrations from %d episodes, %.2f achievements each",
            len(data.training) + len(data.validation),
            settings.episodes,
            sum(data.returns) / len(data.returns),
        )
        size, seed, checkpoint = spec.rollout.env_config.image_size, spec.training.seed, self.folder.warm_start
        with self.meter.phase("warm_start", "supervised training"):
            loss = await asyncio.to_thread(sft.train, policy, data, settings, size, seed, checkpoint, self._tell)
        checkpoint.unlink(missing_ok=True)
        logger.info("the warm start ended at %.3f nats per decision on held-out episodes", loss)

    def _tell(self, progress: sft.SftReport) -> None:
        line = f"supervised step {progress.step}/{progress.steps}, loss {progress.loss:.3f} nats per decision"
        if progress.validation_loss is not None:
            line += f", validation {progress.validation_loss:.3f}"
        self.bulletin.update(message=line)
        logger.info(line)
