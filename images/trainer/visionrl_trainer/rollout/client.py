"""Client of the task app: one episode per call, with retries, a size limit and a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
from pydantic import ValidationError

from visionrl import tracing
from visionrl.problems import dotted
from visionrl.rollout import RolloutRequest, RolloutResponse

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
GRACE_SECONDS = 60.0
"""What a whole answer may take beyond the episode's own limit."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
BASE_BYTES = TURN_BYTES = 1 << 20
"""Room for an answer, and for each of its turns without the frame: ids, logprobs, text."""
FRAME_BYTES_PER_PIXEL = 4
"""Of an RGB frame that no PNG compresses, as base64."""
FORGET_SECONDS, FORGET_BYTES = 10.0, 1 << 16
INFO_SECONDS, INFO_BYTES = 30.0, 1 << 20


class RolloutRefused(RuntimeError):
    """The task app refuses this request for good; the message is its answer."""


class AnswerRejected(ValueError):
    """An answer that is not used: unreadable, or in disagreement with itself or the request. The message says why.

    The task app would repeat it for the same ``run_id``; only another ``run_id`` makes it play again.
    """


@dataclass(frozen=True)
class _Answer:
    status: int
    content: bytearray

    @property
    def text(self) -> str:
        return self.content[:2000].decode(errors="replace")


class TaskApp:
    """The task app at a base URL. Create it in a running event loop and use it as an async context manager.

    It plays at most ``concurrency`` episodes at a time, in the order in which they were asked for. Many requests wait,
    each for minutes: aiohttp's pool costs the same for every one of them.
    """

    def __init__(self, url: str, key: str, concurrency: int) -> None:
        self._url = url.rstrip("/")
        self._slots = asyncio.Semaphore(concurrency)
        self._playing, self._busy, self._since = 0, 0.0, 0.0
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
            connector=aiohttp.TCPConnector(limit=0),  # a slot is waited for before an episode's time begins to run
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS
            ),  # an answer's deadline is rollout's
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self.proof: Callable[[RolloutResponse], Awaitable[None]] | None = None
        """Called with every answer before it is returned: waits until the servers that played it are proven, and raises
        :class:`AnswerRejected` where they cannot be."""

    @property
    def busy_seconds(self) -> float:
        """Seconds so far in which at least one episode was being played."""
        return self._busy + (time.monotonic() - self._since if self._playing else 0.0)

    async def __aenter__(self) -> TaskApp:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        """Play one episode. A failed call is retried: ``run_id`` makes that safe.

        Raises :class:`AnswerRejected` on an answer that cannot be used, :class:`RolloutRefused` on a final refusal,
        :class:`ConnectionError` if the task app gave no answer for ``patience`` seconds beyond the episode's own limit.
        """
        with tracing.span("rollout", "client", run_id=request.run_id, seed=request.env.seed):
            return await self._rollout(request, patience)

    async def _rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        body = request.model_dump_json(by_alias=False).encode()
        limit = answer_limit(request)
        deadline = asyncio.get_running_loop().time() + patience
        delay = FIRST_DELAY
        while True:
            try:
                async with self._slot(), asyncio.timeout(request.safety.max_time_s + GRACE_SECONDS):
                    answer = await self._post("/rollout", body, limit)
                # 424: the task app could not reach the inference server, which may be restarting.
                if answer.status < 500 and answer.status not in (424, 429):
                    break
                failure = f"status {answer.status}: {answer.text[:200]}"
            except (aiohttp.ClientError, OSError) as error:
                failure = f"{type(error).__name__}: {error}"
            if not asyncio.get_running_loop().time() <= deadline:
                raise ConnectionError(f"the task app did not play {request.run_id}: {failure}")
            logger.warning("task app: %s; retrying in %.1f s", failure, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
        if answer.status == 409:
            raise AnswerRejected(f"the task app knows {request.run_id} as another request: {answer.text}")
        if answer.status != 200:
            raise RolloutRefused(f"status {answer.status}: {answer.text}")
        response = await asyncio.to_thread(parse_answer, answer.content)
        if self.proof is not None:
            await self.proof(response)
        return response

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of the episodes at a time."""
        async with self._slots:
            if not self._playing:
                self._since = time.monotonic()
            self._playing += 1
            try:
                yield
            finally:
                self._playing -= 1
                if not self._playing:
                    self._busy += time.monotonic() - self._since

    async def task_info(self) -> Mapping[str, Any]:
        """What it plays. Raises :class:`RolloutRefused` on a final refusal, :class:`ConnectionError` with the reason
        where it does not answer now."""
        try:
            async with asyncio.timeout(INFO_SECONDS):
                answer = await self._ask("GET", "/task_info", None, INFO_BYTES)
        except (aiohttp.ClientError, OSError, AnswerRejected) as error:
            raise ConnectionError(str(error) or type(error).__name__) from None
        if answer.status >= 500 or answer.status == 429:
            raise ConnectionError(f"status {answer.status}: {answer.text[:200]}")
        try:
            found = json.loads(answer.content) if answer.status == 200 else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RolloutRefused(f"GET /task_info: status {answer.status}: {answer.text[:200]}")
        return found

    async def forget(self, run_id: str) -> None:
        """Tell the task app that its answer is not used, so that it does not keep it. Where that fails, the answer
        leaves its cache with time."""
        try:
            async with asyncio.timeout(FORGET_SECONDS):
                answer = await self._post("/done", json.dumps({"run_id": run_id}).encode(), FORGET_BYTES)
            if answer.status != 200:
                logger.warning("the task app keeps its answer to %s: status %d", run_id, answer.status)
        except (aiohttp.ClientError, OSError, AnswerRejected) as error:
            logger.warning("the task app keeps its answer to %s: %s", run_id, type(error).__name__)

    async def _post(self, path: str, body: bytes, limit: int) -> _Answer:
        return await self._ask("POST", path, body, limit)

    async def _ask(self, method: str, path: str, body: bytes | None, limit: int) -> _Answer:
        """Raises :class:`AnswerRejected` for an answer that is larger than ``limit`` bytes or compressed."""
        headers = {**({"Content-Type": "application/json"} if body is not None else {}), **tracing.headers()}
        async with self._session.request(
            method, self._url + path, data=body, headers=headers, allow_redirects=False
        ) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise AnswerRejected("the task app's answer is compressed, which was not asked for")
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > limit:
                    raise AnswerRejected(f"the task app's answer is larger than {limit} bytes")
        return _Answer(response.status, content)


def answer_limit(request: RolloutRequest) -> int:
    """Bytes of the largest honest answer to a request."""
    frame = FRAME_BYTES_PER_PIXEL * request.env.config.image_size**2
    return BASE_BYTES + request.policy.config.max_llm_calls * (TURN_BYTES + frame)


def parse_answer(content: bytes | bytearray) -> RolloutResponse:
    """Raises :class:`AnswerRejected`, which names the first field that is wrong."""
    try:
        return RolloutResponse.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = f"{dotted(first['loc'])}: " if first["loc"] else ""
        raise AnswerRejected(f"the task app's answer cannot be read: {where}{first['msg']}"[:300]) from None
