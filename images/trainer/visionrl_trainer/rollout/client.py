"""Client of the task app: one episode per call, with retries."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

import httpx

from visionrl.rollout import RolloutRequest, RolloutResponse

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0


class RolloutRefused(RuntimeError):
    """The task app refuses this request for good; the message is its answer."""


class TaskApp:
    """The task app at a base URL. Use as an async context manager."""

    def __init__(self, url: str, key: str, concurrency: int) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=False,
        )

    async def __aenter__(self) -> TaskApp:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        """Play one episode. A failed call is retried: ``run_id`` makes that safe.

        Raises :class:`RolloutRefused` on a final refusal, :class:`ConnectionError` if the task app
        gave no answer for ``patience`` seconds beyond the episode's own limit.
        """
        timeout = httpx.Timeout(request.safety.max_time_s + 60, connect=CONNECT_SECONDS)
        body = request.model_dump_json(by_alias=False)
        deadline = asyncio.get_running_loop().time() + patience
        delay = FIRST_DELAY
        while True:
            try:
                answer = await self._client.post(
                    "/rollout", content=body, headers={"Content-Type": "application/json"}, timeout=timeout
                )
                # 424: the task app could not reach the inference server, which may be restarting.
                if answer.status_code < 500 and answer.status_code not in (424, 429):
                    break
                failure = f"status {answer.status_code}: {answer.text[:200]}"
            except httpx.TransportError as error:
                failure = f"{type(error).__name__}: {error}"
            if asyncio.get_running_loop().time() > deadline:
                raise ConnectionError(f"the task app did not play {request.run_id}: {failure}")
            logger.warning("task app: %s; retrying in %.1f s", failure, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
        if answer.status_code != 200:
            raise RolloutRefused(f"status {answer.status_code}: {answer.text[:2000]}")
        return await asyncio.to_thread(RolloutResponse.model_validate_json, answer.content)
