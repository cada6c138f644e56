"""JSON responses, and request bodies within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from visionrl.checks import Problem

BODY_LIMIT = 2**20
"""Bytes of a request's body."""
BODY_TIMEOUT_S = 30.0
# A body that is too long is still read up to this many limits, so that its client gets the response and not a broken
# connection.
_DRAINED = 16


class BadBodyError(Exception):
    """A body that cannot be used."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def json_response(data: Any, status: int = 200) -> Response:
    return raw(orjson.dumps(data), status)


def raw(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def error(
    status: int, message: str, headers: Mapping[str, str] | None = None, problems: Sequence[Problem] = ()
) -> Response:
    """`{"error": message, "problems": [{"field", "message"}, …]}`."""
    body: dict[str, Any] = {"error": message}
    if problems:
        body["problems"] = [{"field": problem.path, "message": problem.message} for problem in problems]
    return raw(orjson.dumps(body), status, headers)


async def read_body(request: Request) -> bytes:
    """The whole body. Raises :class:`BadBodyError` where it is too long or does not arrive."""
    received, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= BODY_LIMIT:
                    received.append(chunk)
                elif size > _DRAINED * BODY_LIMIT:
                    break
    except TimeoutError:
        raise BadBodyError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if size > BODY_LIMIT:
        raise BadBodyError(413, f"the body is larger than {BODY_LIMIT} bytes")
    return b"".join(received)


def parse_json(body: bytes) -> Any:
    """Raises :class:`BadBodyError`."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise BadBodyError(400, f"the body is no JSON: {problem}") from None
