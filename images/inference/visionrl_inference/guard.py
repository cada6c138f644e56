"""ASGI middleware in front of vLLM: the job's key on every path, no adapter administration, bounded bodies.

vLLM's own ``--api-key`` leaves ``/adapters``, ``/invocations`` and ``/tokenize`` open. Every answer names the server
that gave it: the trainer tests each new one (``visionrl_trainer.sync.canary``).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visionrl.adapters import SERVER_HEADER
from visionrl.job import TASKAPP_KEY

SERVER_VARIABLE = "VISIONRL_SERVER"
"""Variable with the server's identifier, which all processes of one start share."""
OPEN = frozenset({"/health", "/metrics"})
"""Paths for probes and scrapers."""
SHUT = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters")
"""Adapters come and go by name alone."""
MAX_BODY_BYTES = 64 << 20


class Guard:
    """``--middleware visionrl_inference.guard.Guard``; the key is the content of ``VISIONRL_KEY_FILE``. A task app that
    runs elsewhere does not know it, and asks with its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        key = Path(os.environ["VISIONRL_KEY_FILE"]).read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError("VISIONRL_KEY_FILE names an empty file")
        self.expected = [f"Bearer {each}".encode() for each in (key, os.environ.get(TASKAPP_KEY, "").strip()) if each]
        self.server = os.environ[SERVER_VARIABLE]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers, send = Headers(scope=scope), self._signed(send)
        if scope["path"] not in OPEN and not self._knows_the_key(headers):
            await _refuse(401, "Authorization: Bearer <key> is missing or wrong", scope, receive, send)
        elif scope["path"].startswith(SHUT):
            await _refuse(404, "adapters are loaded by name, on request", scope, receive, send)
        elif _declared_length(headers) > MAX_BODY_BYTES:
            await _refuse(413, _TOO_LARGE, scope, receive, send)
        else:
            await self.app(scope, _bounded(receive), send)

    def _knows_the_key(self, headers: Headers) -> bool:
        given = headers.get("authorization", "").encode()
        matches = [secrets.compare_digest(given, expected) for expected in self.expected]
        return any(matches)

    def _signed(self, send: Send) -> Send:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[SERVER_HEADER] = self.server
            await send(message)

        return signed


_TOO_LARGE = f"the body exceeds {MAX_BODY_BYTES >> 20} MiB"


def _declared_length(headers: Headers) -> int:
    """0 where none is declared, or one that is no number: what arrives is counted all the same."""
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0


async def _refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    error = {"message": message, "code": status}
    await JSONResponse({"error": error}, status)(scope, receive, send)


def _bounded(receive: Receive) -> Receive:
    """``receive`` that stops a body without a declared length at the limit."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return counted
