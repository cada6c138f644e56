"""The client of inference servers: one completion per call, within limits of time and size."""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson
from yarl import URL

from visionrl import tracing
from visionrl.adapters import SERVER_HEADER
from visionrl_taskapp.policies.completions import Completion, InferenceError, read_completion

# How long to wait for a server that refuses connections before an episode's first turn: a wrong URL should be
# reported soon, while a restart in the middle of an episode should be waited out.
FIRST_CONTACT_S = 10.0
BODY_LIMIT = 16 * 2**20
"""Bytes of a completion: 100,000 tokens with their logprobs are about 10 MB."""
_ERROR_LIMIT = 2**12
_KEEP_ALIVE_S = 60.0
POLICY_KEY_VARIABLE = "VISIONRL_POLICY_API_KEY"
"""Environment variable of the task app with the key for servers other than the job's."""
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_SHOWN = 300
_LONGEST_NAME = 64


class UnreachableError(InferenceError):
    """No connection to the server was ever made in this call."""


@dataclass(frozen=True)
class _Response:
    status: int
    body: bytes
    retry_after: str
    server: str


class InferenceClient:
    """Connections to inference servers, shared by all episodes. Create it in a running event loop.

    The job's key is sent to the job's own server only; other servers get `policy_key`, if there is one, or only
    `policy_server` does, if that is given. Both keys are removed from error messages.
    """

    def __init__(
        self, job_server: str | None, job_key: str | None, policy_key: str | None, policy_server: str | None = None
    ) -> None:
        self._job_server, self._job_key = URL(job_server) if job_server else None, job_key
        self._policy_server, self._policy_key = URL(policy_server) if policy_server else None, policy_key
        # Deadlines are the caller's. A compressed body could be a thousand times as long as what was received, so
        # none is decompressed. aiohttp's own handling of the environment would also read ~/.netrc at each request.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def complete(
        self, url: URL, body: Mapping[str, Any], logprobs: bool, deadline: float, connect_by: float
    ) -> Completion:
        """One completion before `deadline` (the event loop's clock).

        Connection errors, 429 and 5xx are retried with growing pauses, or after the time that the server asks for.
        Raises :class:`InferenceError` for what retrying cannot repair (a wait beyond the deadline, too) or did not
        repair in time, :class:`UnreachableError` where no connection succeeded until `connect_by` or none is
        possible, `TimeoutError` where the server does not respond.
        """
        clock = asyncio.get_running_loop().time
        content = orjson.dumps(body)
        connected, problem, pause = False, "", _FIRST_PAUSE_S
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        with tracing.span("completion", "client"):
                            response = await self._post(url, content)
                    except aiohttp.ClientConnectorError as error:
                        problem = f"cannot connect to {_place(url)}: {error.__cause__ or error}"
                        if not connected and clock() >= connect_by:
                            raise UnreachableError(problem) from None
                    except ValueError as error:  # such as a host name that no resolver takes
                        raise UnreachableError(f"cannot send a request to {_place(url)}: {error}") from None
                    except (aiohttp.ClientError, OSError) as error:
                        connected = True
                        problem = f"connection to {_place(url)} broke: {error or type(error).__name__}"
                    else:
                        connected = True
                        if response.status == 200:
                            return read_completion(_json(response.body), logprobs, response.server)
                        problem = f"{_place(url)} answered {response.status}: {self._printable(response.body)}"
                        asked = _seconds(response.retry_after)
                        if advice := self._advice(url, response, asked >= deadline - clock()):
                            raise InferenceError(f"{problem}; {advice}")
                        if response.status != 429 and response.status < 500:
                            raise InferenceError(problem)
                        pause = max(pause, asked)
                    await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        except TimeoutError:
            if not problem:
                raise
            failure = InferenceError if connected else UnreachableError
            raise failure(f"{problem} (retried until the deadline)") from None

    def key_for(self, url: URL) -> str | None:
        """The key that a request to this URL carries."""
        if self._is_inside(url):
            return self._job_key
        others = self._policy_server is None or _origin(url) == _origin(self._policy_server)
        return self._policy_key if others else None

    def _advice(self, url: URL, response: _Response, too_long: bool) -> str:
        """What to do about a response that repeating the request cannot change; empty for others. ``too_long``: the
        server asks for a wait beyond the deadline."""
        if self._is_inside(url):
            return ""
        if response.status in (401, 403):
            if self.key_for(url):
                return f"it refuses the key of {POLICY_KEY_VARIABLE}"
            if self._policy_key:
                return f"the key of {POLICY_KEY_VARIABLE} is only for {self._policy_server} (VISIONRL_POLICY_API_URL)"
            return f"no key was sent: set {POLICY_KEY_VARIABLE} where the task app runs"
        if response.status == 429 and b"insufficient_quota" in response.body:
            return f"the quota of the key in {POLICY_KEY_VARIABLE} is used up"
        if response.status == 429 and too_long:
            return (
                f"its Retry-After of {response.retry_after[:20]} s is beyond the turn's deadline: raise turn_timeout_s"
            )
        return ""

    def _is_inside(self, url: URL) -> bool:
        return self._job_server is not None and _origin(url) == _origin(self._job_server)

    async def _post(self, url: URL, content: bytes) -> _Response:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key := self.key_for(url):
            headers["authorization"] = f"Bearer {key}"
        if self._is_inside(url):  # a provider need not know of our spans
            headers |= tracing.headers()
        proxy = None if self._is_inside(url) else _environment_proxy(url)
        async with self._session.post(
            url, data=content, headers=headers, proxy=proxy, allow_redirects=False
        ) as response:
            body = await _read(response)
            retry_after, server = (response.headers.get(name, "") for name in ("retry-after", SERVER_HEADER))
            return _Response(response.status, body, retry_after, server[:_LONGEST_NAME])

    def _printable(self, body: bytes) -> str:
        """What a server said about an error, in one short line without keys and control characters."""
        text = body.decode("utf-8", "replace")
        for key in filter(None, (self._job_key, self._policy_key)):
            text = text.replace(key, "***")
        text = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body; of an error, its beginning. Raises :class:`InferenceError` where it is compressed or too long."""
    good = response.status == 200
    limit = BODY_LIMIT if good else _ERROR_LIMIT
    encoding = response.headers.get("content-encoding", "identity")
    if good and encoding.lower() != "identity":
        raise InferenceError(f"the server's response is compressed ({encoding[:40]!r}) though identity was asked for")
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            if good:
                raise InferenceError(f"the server's response is longer than {limit} bytes")
            break
    return b"".join(chunks)[:limit]


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port


def _place(url: URL) -> str:
    return str(url.with_query(None))


def _environment_proxy(url: URL) -> str | None:
    """The proxy that the environment names for servers outside the cluster."""
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InferenceError(f"the server's response is no JSON: {error}") from None


def _seconds(retry_after: str) -> float:
    """From a Retry-After, which has seconds or a date (RFC 9110, 10.2.3); 0 for anything else."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
