"""The inference server as the canary asks it: logprobs, what it serves, and which server answered.

Answers have a size limit and a total deadline.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from visionrl.adapters import ADAPTERS_PATH, SERVER_HEADER
from visionrl.component import ConfigurationError

ANSWER_SECONDS = 120.0
"""Total time of an answer; the first one of a server may compile kernels."""
MAX_ANSWER_BYTES = 8 << 20
BASE = "base"
"""Name of the base model at the server."""
FINAL = frozenset({400, 401, 403, 413, 422})
"""Statuses of requests that will be refused for ever: they are wrong, or the adapter is."""
NOT_LOADED = "could not be loaded"
"""In vLLM's message of a 400 for an adapter that it fetched and failed to load: so it answers, too, while its engine
has died and it shuts down. An adapter that must not be served is a 422."""


class InferenceRefused(ConfigurationError):
    """The server refuses what is asked, and no retry changes that; the message has its reason."""


class Unavailable(Exception):
    """No answer, or one that another try may better."""


class NotServed(Unavailable):
    """The server has no such model (404): the trainer that it asks has not published it, or it cannot load it now."""


class UnusableAnswer(ValueError):
    """An answer that is not what was asked for."""


@dataclass(frozen=True)
class Answer:
    """A successful answer."""

    document: Any
    server: str
    """Identifier of the server that answered."""


class InferenceClient:
    """Requests of one kind or the other; all raise :class:`InferenceRefused`, :class:`Unavailable` or
    :class:`UnusableAnswer`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def completion(self, body: dict[str, Any]) -> Answer:
        """One chat completion."""
        return await self._ask("POST", "/v1/chat/completions", body)

    async def prompt_logprobs(self, model: str, ids: Sequence[int]) -> tuple[Tensor, str]:
        """Log-probabilities [len(ids) - 1] of all ids but the first, in float64, and the server that answered."""
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1}
        answer = await self._ask("POST", "/v1/completions", body)
        try:
            places = answer.document["choices"][0]["prompt_logprobs"][1:]
            logprobs = [float(place[str(token)]["logprob"]) for place, token in zip(places, ids[1:], strict=True)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnusableAnswer(f"{model}: no logprobs of the prompt ({type(error).__name__}: {error})") from None
        return torch.tensor(logprobs, dtype=torch.float64), answer.server

    async def served_digest(self, name: str) -> tuple[str, str]:
        """Digest of the content that a server serves under an adapter's name, and the server."""
        answer = await self._ask("GET", path := f"{ADAPTERS_PATH}/{name}", None)
        digest = answer.document.get("digest") if isinstance(answer.document, dict) else None
        if not isinstance(digest, str):
            raise UnusableAnswer(f"{path}: no digest")
        return digest, answer.server

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, headers, content = await self._exchange(method, path, body)
        except TimeoutError:
            raise Unavailable(f"{path}: no complete answer after {ANSWER_SECONDS:.0f} s") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{path}: {type(error).__name__} {error}".rstrip()) from error
        if status != 200:
            raise _failure(status, f"{path}: status {status}, {_reason(content)}")
        if SERVER_HEADER not in headers:
            raise UnusableAnswer(f"{path}: no header {SERVER_HEADER}; this is no inference server of VisionRL")
        try:
            return Answer(json.loads(content), headers[SERVER_HEADER])
        except (ValueError, RecursionError) as error:
            raise UnusableAnswer(f"{path}: no JSON ({error})") from None

    async def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[int, httpx.Headers, bytearray]:
        headers = {"Accept-Encoding": "identity"}
        async with self.client.stream(method, path, json=body, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise UnusableAnswer(f"{path}: compressed, which was not asked for")
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise UnusableAnswer(f"{path}: more than {MAX_ANSWER_BYTES} bytes")
        return response.status_code, response.headers, content


def _failure(status: int, reason: str) -> Exception:
    if status == 404 or (status == 400 and NOT_LOADED in reason):
        return NotServed(reason)
    return InferenceRefused(reason) if status in FINAL else Unavailable(reason)


def _reason(content: bytearray) -> str:
    """What an error's body says, in one line."""
    text = content[:2000].decode(errors="replace")
    try:
        document = json.loads(content)
        return str(document["error"]["message"])[:500]
    except (ValueError, RecursionError, KeyError, TypeError):
        return " ".join(text.split())[:500] or "no reason"
