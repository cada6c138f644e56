"""A server's HTTP connections within limits: what a client may send before its request is answered, and how many stay
open. For the components that serve with uvicorn.

uvicorn with httptools bounds neither a request's head nor the time that it takes, so a client without a key could fill
the memory with headers, or the file descriptors with connections that never finish a request.
"""

from __future__ import annotations

import asyncio
import functools
import resource
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 2**10
"""Bytes of a request beyond its body: the request line, headers, trailers, and the framing of chunks."""
HEAD_TIMEOUT_S = 20.0
"""For the head of a request to arrive, and for the rest of a body that is no longer needed."""

# Descriptors that are no connections: files, pipes, the trace database.
_RESERVED_FILES = 64
_MOST_FILES = 2**16


def raise_file_limit() -> None:
    """Let the process open as many files as it may: an episode in flight holds two connections of the task app."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit() -> int:
    """Clients' connections that may be open: half of the files, since the other half is for connections to others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    return max(1, (files - _RESERVED_FILES) // 2)


class Waiting:
    """The connections without a request in progress, the longest waiting first.

    Beyond `limit` open connections, the longest waiting one is closed: an idle client connects again, and a client that
    sends its request at once is not among them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._connections: dict[LimitedProtocol, None] = {}

    def add(self, connection: LimitedProtocol, open_connections: int) -> None:
        self._connections.pop(connection, None)
        self._connections[connection] = None
        if open_connections > self._limit:
            next(iter(self._connections)).abort()

    def remove(self, connection: LimitedProtocol) -> None:
        self._connections.pop(connection, None)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with `HEAD_LIMIT`, `HEAD_TIMEOUT_S`, and `waiting`, which a server's connections share."""

    def __init__(self, waiting: Waiting, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting = waiting
        # Of the current request: bytes beyond its body, and bytes of its body. And body bytes of the data being read.
        self._overhead = self._body = self._body_now = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_data()
        self._waiting.add(self, len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._waiting.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._body_now = 0
        super().data_received(data)
        self._overhead += len(data) - self._body_now
        # Chunks of a body may be small, so that their framing is as long as the body.
        if not self._overhead <= HEAD_LIMIT + self._body:
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._overhead = self._body = 0
        self._expect_data()

    def on_headers_complete(self) -> None:
        self._expect_nothing()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_LIMIT:
            self._refuse()
        else:
            self._waiting.remove(self)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._body_now += len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._expect_nothing()
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._waiting.add(self, len(self.connections))
            if self.cycle.more_body:
                self._expect_data()

    def abort(self) -> None:
        self._waiting.remove(self)
        self.transport.abort()

    def _expect_data(self) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.abort)

    def _expect_nothing(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = b'{"error":"the head of the request is larger than %d bytes"}' % HEAD_LIMIT
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()


def limited_protocol(limit: int) -> type[asyncio.Protocol]:
    """What a server makes its connections with, as `uvicorn.Config` takes it."""
    return cast(type[asyncio.Protocol], functools.partial(LimitedProtocol, Waiting(limit)))
