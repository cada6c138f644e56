"""Meeting the task app: what a job asks of its environment, before anything is trained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from visionrl.checks import runs_task_app, undetermined
from visionrl.component import ConfigurationError
from visionrl.job import JobSpec
from visionrl_trainer.rollout.client import RolloutRefused, TaskApp
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS
from visionrl_trainer.sync.service import StatusPublisher

RETRY_SECONDS = 2.0

logger = logging.getLogger(__name__)


async def meet(taskapp: TaskApp, spec: JobSpec, publisher: StatusPublisher) -> None:
    """Wait for a task app that runs elsewhere; ask it, or one of a user's own, what the job relies on.

    Raises :class:`ConfigurationError` where it is not what the job names, :class:`ConnectionError` where it does not
    answer for ``PATIENCE_SECONDS``.
    """
    if runs_task_app(spec) and spec.algorithm.advantage != "state_anchored":
        return  # the operator's probe says that it is ready, and it checked its environment itself
    where = spec.task_app.url or "the task app"
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            told = await taskapp.task_info()
            break
        except RolloutRefused as error:
            raise ConfigurationError(f"spec.taskApp: {where} refuses the trainer: {error}") from None
        except ConnectionError as error:
            if not asyncio.get_running_loop().time() <= deadline:
                raise ConnectionError(f"{where} does not answer: {error}") from None
            publisher.update(message=f"waits for {where}: {error}")
            logger.warning("%s does not answer: %s", where, error)
        await asyncio.sleep(RETRY_SECONDS)
    if problem := mismatch(told, spec):
        raise ConfigurationError(problem)
    publisher.update(task_app_ready=True, message="")


def mismatch(told: Mapping[str, Any], spec: JobSpec) -> str | None:
    """Why a task app that says this of itself (``/task_info``) cannot be the job's."""
    name = told.get("environment")
    if spec.task_app.url is not None and name != spec.rollout.env_name:
        return f"spec.rollout.envName: is {spec.rollout.env_name}, but {spec.task_app.url} plays {name}"
    return undetermined(spec, str(name), told.get("deterministic", True) is True)
