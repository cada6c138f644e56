"""The base model's directory: found, built, or trained first."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import torch

from visionrl.base_model import locate_base
from visionrl.job import Job
from visionrl_trainer import sft, teacher
from visionrl_trainer.model import Policy
from visionrl_trainer.progress import Meter
from visionrl_trainer.runfolder import RunFolder
from visionrl_trainer.service import Bulletin
from visionrl_trainer.taskapp import TaskApp

logger = logging.getLogger(__name__)


async def prepare(
    job: Job, folder: RunFolder, cache: Path, device: torch.device, taskapp: TaskApp, bulletin: Bulletin, meter: Meter
) -> Path:
    """Directory (or hub id) of the base that adapters are trained on. With a warm start, trains it first unless it
    is there already. Raises :class:`visionrl.part.ConfigurationError` where the model does not exist."""
    source = await asyncio.to_thread(locate_base, job, cache)
    if job.spec.training.warm_start is None:
        bulletin.update(base_ready=True)
        return source
    if not folder.base.exists():
        await _warm_start(job, folder, source, device, taskapp, bulletin, meter)
    bulletin.base = folder.base
    bulletin.update(base_ready=True)
    return folder.base


async def _warm_start(
    job: Job, folder: RunFolder, source: Path, device: torch.device, taskapp: TaskApp, bulletin: Bulletin, meter: Meter
) -> None:
    settings = job.spec.training.warm_start
    assert settings is not None
    bulletin.update(phase="WarmStart")
    played = 0

    def on_episode() -> None:
        nonlocal played
        played += 1
        bulletin.update(message=f"the scripted player plays: {played}/{settings.episodes} episodes")

    def on_report(progress: sft.SftReport) -> None:
        line = f"supervised step {progress.step}/{progress.steps}, loss {progress.loss:.3f} nats per decision"
        bulletin.update(message=line)
        logger.info(line if progress.validation_loss is None else f"{line}, validation {progress.validation_loss:.3f}")

    with meter.phase("teacher", "the scripted player plays"):
        data = await teacher.collect(taskapp, job.spec, job.name, on_episode)
    logger.info(
        "%d demonstrations from %d episodes, %.2f achievements each",
        len(data.training) + len(data.validation),
        settings.episodes,
        sum(data.returns) / len(data.returns),
    )
    with meter.phase("warm_start", "supervised training"):
        policy = await asyncio.to_thread(Policy.load, source, job.spec.model.dtype, device)
        validation = await asyncio.to_thread(
            sft.train,
            policy,
            data,
            settings,
            job.spec.rollout.env_config.image_size,
            job.spec.training.seed,
            folder.warm_start_checkpoint,
            on_report,
        )
        await asyncio.to_thread(sft.export, policy, source, folder.base)
    folder.warm_start_checkpoint.unlink(missing_ok=True)
    logger.info("the warm start ended at %.3f nats per decision on held-out episodes", validation)
