"""Getting a version served: published, fetched by the server, proven by the canary."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from visionrl.adapters import Version, probe_job
from visionrl.checks import uses_vision
from visionrl.job import JobSpec
from visionrl.rollout import RolloutResponse
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.client import AnswerRejected
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS
from visionrl_trainer.sync import probe
from visionrl_trainer.sync.canary import Canary, CanaryFailed, Report
from visionrl_trainer.sync.inference_client import InferenceClient, NotServed, Unavailable
from visionrl_trainer.sync.publish import AdapterStore
from visionrl_trainer.sync.service import StatusPublisher

logger = logging.getLogger(__name__)

T = TypeVar("T")
POLL_SECONDS = 1.0
MISSING_SECONDS = 60.0
"""How long a server may answer that it knows no such version: the trainer has it, so the server asks another one."""


class WeightSync:
    """The versions of a policy at the inference server."""

    def __init__(
        self, store: AdapterStore, inference: httpx.AsyncClient, spec: JobSpec, publisher: StatusPublisher
    ) -> None:
        self.store, self.spec, self.publisher = store, spec, publisher
        self.inference = InferenceClient(inference)
        publisher.adapters = store
        self._canary: Canary | None = None
        self._checking = asyncio.Lock()
        """One check at a time: both sides of each concern one server."""

    async def push(self, policy: Policy, version: Version) -> Report:
        """Return what the canary found when the server answers as the policy, which was published as ``version``.

        A server that is away is waited for. Raises :class:`visionrl_trainer.sync.canary.CanaryFailed` where it serves
        other weights, twice; :class:`visionrl_trainer.sync.inference_client.InferenceRefused` where it refuses the
        version for good; ``ConnectionError`` where it stays away.
        """
        self.publisher.set_policy(trained=version.name)
        self._canary = self._canary or self._new_canary(policy)
        async with self._checking:
            report = await self._patiently(self._canary.check, version)
        self.publisher.set_policy(serving=version.name)
        told, untold = report.told_apart, sorted(report.against.keys() - report.told_apart)
        logger.info(
            "%s serves, content %s: differs by %.1e nats; told apart from %s%s",
            version.name,
            report.digest,
            report.difference,
            " and ".join(told) or "no other weights",
            f"; too close to {' and '.join(untold)} to tell by its answers" if untold else "",
        )
        return report

    async def admit(self, response: RolloutResponse) -> None:
        """Return when each server that answered in this episode was shown to serve its version: one that was
        started since the last push is proven before anything is made of its answers.

        Raises :class:`~visionrl_trainer.rollout.client.AnswerRejected` where such a server is gone, and like
        :meth:`push`.
        """
        decisions = [decision for trajectory in response.trajectories for decision in trajectory.decisions]
        for server, model in sorted({(decision.server, decision.model) for decision in decisions if decision.server}):
            version = self.store.version(model)
            if self._canary is None or version is None:
                continue  # no version of ours was asked for, or the intake refuses the answer
            async with self._checking:
                if self._canary.has_admitted(server, version):
                    continue
                answered = await self._patiently(self._canary.admit, version)
            if answered != server:
                raise AnswerRejected(f"server {server} was gone before it was shown to serve {model}")

    def _new_canary(self, policy: Policy) -> Canary:
        root = self.store.root.with_name("probe")
        shutil.rmtree(root, ignore_errors=True)  # an earlier attempt's
        probe_store = self.publisher.probes = AdapterStore(root, probe_job(self.store.job))
        spec = self.spec
        return Canary(
            self.inference,
            policy,
            spec.model.dtype,
            spec.rollout.env_config.image_size if uses_vision(spec) else None,
            spec.rollout.policy_config.temperature,
            probe.sequence(policy, spec.inference.vllm.max_model_len - 1),
            self.store,
            probe_store,
        )

    async def _patiently(self, check: Callable[[Version], Awaitable[T]], version: Version) -> T:
        """The check's result. One that fails is repeated once; a server that is away is asked again and again."""
        started, missing_since, failed = time.monotonic(), None, False
        before = self.publisher.report.phase
        while True:
            now = time.monotonic()
            try:
                found = await check(version)
            except CanaryFailed as error:
                if failed:
                    raise
                logger.warning("%s; checking once more", error)
                failed = True
            except Unavailable as error:
                missing_since = (missing_since or now) if isinstance(error, NotServed) else None
                deadline = missing_since + MISSING_SECONDS if missing_since else started + PATIENCE_SECONDS
                if not now <= deadline:
                    raise ConnectionError(f"the inference server did not serve {version.name}: {error}") from error
                self.publisher.update(phase="WaitingForInference", message=f"waiting for inference: {error}")
                await asyncio.sleep(POLL_SECONDS)
            else:
                if self.publisher.report.phase == "WaitingForInference":
                    self.publisher.update(phase=before)
                return found
