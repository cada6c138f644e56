"""Getting a version served: published, fetched by the server, proven by the canary."""

from __future__ import annotations

import asyncio
import logging
import time

import httpx

from visionrl.adapters import Version
from visionrl.job import JobSpec
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS
from visionrl_trainer.sync import canary
from visionrl_trainer.sync.publish import AdapterStore
from visionrl_trainer.sync.service import StatusPublisher

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class WeightSync:
    """The versions of a policy at the inference server."""

    def __init__(
        self, store: AdapterStore, inference: httpx.AsyncClient, spec: JobSpec, publisher: StatusPublisher
    ) -> None:
        self.store, self.inference, self.spec, self.publisher = store, inference, spec, publisher
        publisher.adapters = store

    async def push(self, policy: Policy, version: Version) -> None:
        """Return when the server answers as the policy, which was published as ``version``.

        A server that is away is waited for. Raises :class:`visionrl_trainer.sync.canary.CanaryFailed` where it serves
        other weights, ``ConnectionError`` where it stays away.
        """
        self.publisher.set_policy(trained=version.name)
        await self._prove(policy, version.name)
        self.publisher.set_policy(serving=version.name)

    async def _prove(self, policy: Policy, name: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        size, temperature = self.spec.rollout.env_config.image_size, self.spec.rollout.policy_config.temperature
        while True:
            try:
                found = await canary.check(self.inference, policy, name, self.spec.model.dtype, size, temperature)
                break
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise ConnectionError(f"the inference server did not serve {name}: {error}") from error
                self.publisher.update(phase="WaitingForInference", message=f"waiting for inference: {error}")
                await asyncio.sleep(POLL_SECONDS)
        logger.info("%s serves: differs by %.1e, moves the base by %.1e", name, found.max_difference, found.moved)
