"""Authentication: one key or several, compared in constant time, never shown."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from visionrl_taskapp.server.responses import error

OPEN_PATHS = frozenset({"/health"})


def accepted_keys(main: str | None, aliases: Iterable[str]) -> tuple[str, ...]:
    """Distinct, non-empty keys."""
    return tuple(dict.fromkeys(key.strip() for key in (main or "", *aliases) if key.strip()))


class KeyGuard:
    """ASGI middleware: every path but `/health` requires a key in `X-API-Key`, `X-API-Keys` (comma-separated) or
    `Authorization: Bearer`. 401 without a valid one, 503 where the server has none."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif not self._keys:
            message = "no API key is configured: set VISIONRL_KEY_FILE or ENVIRONMENT_API_KEY"
            await error(503, message)(scope, receive, send)
        elif not self._accepts(Headers(scope=scope)):
            message = "a valid API key is required, as X-API-Key or as Authorization: Bearer"
            await error(401, message, {"www-authenticate": "Bearer"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _accepts(self, headers: Headers) -> bool:
        matches = [hmac.compare_digest(given, key) for given in _given(headers) for key in self._keys]
        return any(matches)


def _given(headers: Headers) -> Iterator[bytes]:
    # Starlette decodes headers as Latin-1; encoding them back gives the bytes that were sent.
    for value in headers.getlist("x-api-key"):
        yield value.strip().encode("latin-1")
    for value in headers.getlist("x-api-keys"):
        yield from (key.strip().encode("latin-1") for key in value.split(","))
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            yield key.strip().encode("latin-1")
