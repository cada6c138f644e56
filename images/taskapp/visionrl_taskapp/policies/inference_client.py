"""Chat completions over HTTP: the request, what is retried, and what a completion must hold to be trained on."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from visionrl.rollout import PolicyConfig
from visionrl_taskapp.policies.prompt import Message

BANNED = -100
"""`logit_bias` of a token that must not be sampled."""

_REASONING_MODELS = re.compile(r"(^|/)(gpt-5|o[1-9])([-.]|$)")

# How long to wait for a server that refuses connections before an episode's first turn: a wrong URL should be
# reported soon, while a restart in the middle of an episode should be waited out.
FIRST_CONTACT_S = 10.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_SHOWN = 300


class InferenceError(Exception):
    """The server's response cannot be used; the message is for the user and holds no key."""


class UnreachableError(InferenceError):
    """No connection to the server was ever made in this call."""


@dataclass(frozen=True)
class Completion:
    """One chat completion. Token ids and logprobs are there when they were asked for."""

    message: Mapping[str, Any]
    model: str
    finish_reason: str | None
    usage: Mapping[str, Any]
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None


def completion_url(base: str) -> httpx.URL:
    """The URL of chat completions, from a base URL with or without `/v1`; its query is kept.

    Raises `ValueError` for anything but a usable http(s) URL.
    """
    try:
        url = httpx.URL(base)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must start with http:// or https:// and name a host")
    if url.userinfo:
        raise ValueError("must not carry a user name or password")
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return url.copy_with(path=path, fragment=None)


def correlation_id(base: str) -> str | None:
    """The `cid` of the URL's query."""
    return httpx.URL(base).params.get("cid")


def completion_body(
    config: PolicyConfig, messages: list[Message], tools: list[dict[str, Any]], logprobs: bool
) -> dict[str, Any]:
    """The request of one decision.

    With `logprobs` the whole distribution is sampled without a grammar (no nucleus, tool choice auto), so that the
    logprobs are those of the policy. A seed is never sent: it breaks the batched decoding of some servers.

    OpenAI's reasoning models refuse `max_tokens`, and every temperature and nucleus but the default of 1: to them,
    these are not sent where they are 1.
    """
    reasoning = _REASONING_MODELS.search(config.model) is not None
    body: dict[str, Any] = {
        "model": config.model,
        "messages": messages,
        "tools": tools,
        "tool_choice": "auto" if logprobs else config.tool_choice,
        "temperature": config.temperature,
        "top_p": 1.0 if logprobs else config.top_p,
        "max_completion_tokens" if reasoning else "max_tokens": config.max_tokens,
    }
    if reasoning:
        body = {name: value for name, value in body.items() if name not in ("temperature", "top_p") or value != 1}
    if config.banned_token_ids:
        body["logit_bias"] = {str(token): BANNED for token in config.banned_token_ids}
    if logprobs:
        body |= {"logprobs": True, "return_token_ids": True, "top_k": -1}
    elif config.top_k is not None:
        body["top_k"] = config.top_k
    return body


def read_completion(data: Any, logprobs: bool) -> Completion:
    """Check a completion. Raises :class:`InferenceError` naming what it lacks."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        if not isinstance(message, dict):
            raise TypeError
    except (TypeError, KeyError, IndexError):
        raise InferenceError("the server's response is no chat completion: it has no choices[0].message") from None
    usage, model = data.get("usage"), data.get("model")
    finish_reason = choice.get("finish_reason")
    completion = Completion(
        message=message,
        model=model if isinstance(model, str) else "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        usage=usage if isinstance(usage, dict) else {},
    )
    if not logprobs:
        return completion
    prompt_ids, token_ids = data.get("prompt_token_ids"), choice.get("token_ids")
    if not (_are_ids(prompt_ids) and _are_ids(token_ids)):
        raise InferenceError(
            "the server gave no token ids although logprobs are recorded: training needs prompt_token_ids and "
            "token_ids (vLLM's return_token_ids); use such a server or set record.logprobs to false"
        )
    values = _logprobs(choice)
    if len(values) != len(token_ids):
        raise InferenceError(
            f"the server gave {len(token_ids)} token ids but {len(values)} logprobs for one completion"
        )
    return Completion(
        completion.message, completion.model, completion.finish_reason, completion.usage, prompt_ids, token_ids, values
    )  # fmt: skip


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    try:
        values = [float(item["logprob"]) for item in choice["logprobs"]["content"]]
    except (TypeError, KeyError, ValueError):
        raise InferenceError("the server gave no logprobs although they were asked for") from None
    if not all(math.isfinite(value) for value in values):
        raise InferenceError("the server gave a logprob that is not finite")
    return values


class InferenceClient:
    """Connections to inference servers, shared by all episodes.

    The job's key is sent to the job's own server only; other servers get `policy_key`, if there is one. Both are
    removed from error messages.
    """

    def __init__(self, job_server: str | None, job_key: str | None, policy_key: str | None) -> None:
        self._job_server = httpx.URL(job_server) if job_server else None
        self._job_key, self._policy_key = job_key, policy_key
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=60)
        # Deadlines are the caller's. The environment's proxies are for servers outside the cluster.
        self._inside = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)
        self._outside = httpx.AsyncClient(timeout=None, limits=limits)

    async def close(self) -> None:
        await asyncio.gather(self._inside.aclose(), self._outside.aclose())

    async def complete(
        self, url: httpx.URL, body: Mapping[str, Any], logprobs: bool, deadline: float, connect_by: float
    ) -> Completion:
        """One completion before `deadline` (the event loop's clock).

        Connection errors, 429 and 5xx are retried with growing pauses. Raises :class:`InferenceError` for what
        retrying cannot repair or did not repair in time, :class:`UnreachableError` where no connection succeeded until
        `connect_by`, `TimeoutError` where the server does not respond.
        """
        clock = asyncio.get_running_loop().time
        content = orjson.dumps(body)
        connected, problem, pause = False, "", _FIRST_PAUSE_S
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        response = await self._post(url, content)
                    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                        problem = f"cannot connect to {_place(url)}: {error or type(error).__name__}"
                        if not connected and clock() >= connect_by:
                            raise UnreachableError(problem) from None
                    except httpx.TransportError as error:
                        connected = True
                        problem = f"connection to {_place(url)} broke: {error or type(error).__name__}"
                    else:
                        connected = True
                        if response.status_code == 200:
                            return read_completion(_json(response), logprobs)
                        problem = f"{_place(url)} answered {response.status_code}: {self._scrubbed(response.text)}"
                        if response.status_code != 429 and response.status_code < 500:
                            raise InferenceError(problem)
                        pause = max(pause, _retry_after(response))
                    await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        except TimeoutError:
            if not problem:
                raise
            failure = InferenceError if connected else UnreachableError
            raise failure(f"{problem} (retried until the deadline)") from None

    async def _post(self, url: httpx.URL, content: bytes) -> httpx.Response:
        inside = self._job_server is not None and _origin(url) == _origin(self._job_server)
        client, key = (self._inside, self._job_key) if inside else (self._outside, self._policy_key)
        headers = {"content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        return await client.post(url, content=content, headers=headers)

    def _scrubbed(self, text: str) -> str:
        for key in filter(None, (self._job_key, self._policy_key)):
            text = text.replace(key, "***")
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _place(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}{url.path}"


def _json(response: httpx.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise InferenceError(f"the server's response is no JSON: {error}") from None


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), 60.0) if value.isdigit() else 0.0
