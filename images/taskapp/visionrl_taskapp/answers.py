"""HTTP answers as JSON, and bodies as JSON within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from visionrl.checks import Problem

DEFAULT_BODY_LIMIT = 2**20
BODY_TIMEOUT_S = 30.0
# A body that is too long is still read this far, so that its client gets the answer and not a broken connection.
_DRAINED = 16


class BadBodyError(Exception):
    """A body that cannot be used."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def answer(data: Any, status: int = 200) -> Response:
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


async def read_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of it. Raises :class:`BadBodyError`."""
    received, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    received.append(chunk)
                elif size > _DRAINED * limit:
                    break
    except TimeoutError:
        raise BadBodyError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if size > limit:
        raise BadBodyError(413, f"the body is larger than {limit} bytes")
    return b"".join(received)


def parse_json(body: bytes) -> Any:
    """Raises :class:`BadBodyError`."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise BadBodyError(400, f"the body is no JSON: {problem}") from None
