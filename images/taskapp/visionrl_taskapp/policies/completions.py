"""Chat completions as data: the URL, the request, and what a response must hold to be played and trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yarl import URL

from visionrl.rollout import PolicyConfig
from visionrl_taskapp.policies.prompt import Message

BANNED = -100
"""`logit_bias` of a token that must not be sampled."""

_REASONING_MODELS = re.compile(r"(^|/)(gpt-5|o[1-9])([-.]|$)")

# Bounds of what a server may report: no vocabulary, model name or count of tokens is beyond them.
_MAX_TOKEN_ID = 2**31 - 1
_MAX_COUNT = 2**31 - 1
_MAX_NAME = 256
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
# Logprobs are at most 0, up to rounding; vLLM writes -9999 for minus infinity, and nothing below.
_MAX_LOGPROB, _MIN_LOGPROB = 1e-3, -1e4


class InferenceError(Exception):
    """The server's response cannot be used; the message is for the user and holds no key."""


@dataclass(frozen=True)
class Completion:
    """One chat completion. It has token ids and logprobs if they were asked for."""

    message: Mapping[str, Any]
    model: str
    finish_reason: str | None
    usage: Mapping[str, int]
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    server: str = ""
    """Process that answered, as the server names it."""


def completion_url(base: str) -> URL:
    """The URL of chat completions, from a base URL with or without `/v1`; its query is kept.

    Raises `ValueError` for anything but a usable http(s) URL.
    """
    try:
        url = URL(base)
        host = url.host  # decoded here: a name in punycode may be none
    except (ValueError, TypeError) as error:
        raise ValueError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError("must start with http:// or https:// and name a host")
    if url.user is not None or url.password is not None:
        raise ValueError("must not carry a user name or password")
    path = url.raw_path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return url.with_path(path, encoded=True, keep_query=True)


def correlation_id(base: str) -> str | None:
    """The `cid` of the URL's query."""
    return URL(base).query.get("cid")


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


def read_completion(data: Any, logprobs: bool, server: str = "") -> Completion:
    """Check a decoded response of a server. With `logprobs` it must hold all that training needs.

    Raises :class:`InferenceError` naming what is missing or wrong.
    """
    try:
        choice = data["choices"][0]
        message = choice["message"]
        if not isinstance(message, dict):
            raise TypeError
    except (TypeError, KeyError, IndexError):
        raise InferenceError("the server's response is no chat completion: it has no choices[0].message") from None
    model, finish_reason, usage = (
        _name(data.get("model")),
        _name(choice.get("finish_reason")),
        _usage(data.get("usage")),
    )
    if not logprobs:
        return Completion(message, model or "", finish_reason, usage, server=server)
    if model is None:
        raise InferenceError(
            "the server did not say which model responded: training compares it with the one asked for"
        )
    prompt_ids, token_ids = data.get("prompt_token_ids"), choice.get("token_ids")
    if not (_are_ids(prompt_ids) and _are_ids(token_ids)):
        raise InferenceError(
            "the server gave no valid token ids although logprobs are recorded: training needs prompt_token_ids and "
            "token_ids (vLLM's return_token_ids); use such a server or set record.logprobs to false"
        )
    values = _logprobs(choice)
    if len(values) != len(token_ids):
        raise InferenceError(
            f"the server gave {len(token_ids)} token ids but {len(values)} logprobs for one completion"
        )
    return Completion(message, model, finish_reason, usage, prompt_ids, token_ids, values, server)


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME else None


def _usage(value: Any) -> dict[str, int]:
    counts = value if isinstance(value, dict) else {}
    return {name: n for name in _COUNTS if type(n := counts.get(name)) is int and 0 <= n <= _MAX_COUNT}


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token <= _MAX_TOKEN_ID for token in value)
    )


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    try:
        values = [item["logprob"] for item in choice["logprobs"]["content"]]
    except (TypeError, KeyError):
        raise InferenceError("the server gave no logprobs although they were asked for") from None
    if not all(type(value) in (int, float) for value in values):
        raise InferenceError("the server gave no logprobs although they were asked for: one is not a number")
    for value in values:
        if not _MIN_LOGPROB <= value <= _MAX_LOGPROB:
            finite = isinstance(value, int) or math.isfinite(value)
            what = f"of {str(value)[:20]}, which no sampled token has" if finite else "that is not finite"
            raise InferenceError(f"the server gave a logprob {what}")
    return [float(value) for value in values]
