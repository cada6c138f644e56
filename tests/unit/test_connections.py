"""What a client may send before its request is answered, and how many connections stay open: real sockets."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from tests.support.ports import free_port
from visionrl import connections
from visionrl.connections import HEAD_LIMIT, limited_protocol

LIMIT = 8
slow_requests: list[int] = []
PATIENCE_S = 60.0


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body; `/now` does not wait for it, `/slow` answers when the test is over."""
    assert scope["type"] == "http"
    length, more = 0, scope["path"] != "/now"
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        slow_requests.append(1)
        await asyncio.wait_for(asyncio.Event().wait(), PATIENCE_S)
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port() -> Iterator[int]:
    config = uvicorn.Config(
        app,
        port=free_port(),
        loop="uvloop",
        http=limited_protocol(LIMIT),
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=900,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield config.port
    server.should_exit = True
    thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.sendall(data)
    return connection


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(2**16) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def flood(connection: socket.socket, piece: bytes, most: int) -> int:
    """Sends a piece again and again; how many bytes were taken before the server hung up."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    return sent


def test_requests_are_answered_one_after_another_on_one_connection(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for length in (0, 5, 10**6, 0):
            assert client.post("/", content=b"x" * length).text == str(length)
        assert client.post("/", content=(b"x" * 1000 for _ in range(500))).text == "500000"
        assert client.post("/", content=b"", headers={"x-long": "v" * 50_000}).text == "0"


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    request = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b"
    with connect(port, b"".join(request % (n, b"x" * n) for n in (3, 0, 70_000, 12))) as connection:
        received = b""
        while received.count(b"HTTP/1.1 200") < 4 or not received.endswith(b"12"):
            data = connection.recv(2**16)
            assert data, f"closed after {received!r}"
            received += data
    assert [part.rpartition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]] == [
        *(b"3", b"0", b"70000", b"12")
    ]


@pytest.mark.parametrize("beginning", [b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx: ", b"GET /"])
@pytest.mark.parametrize("piece", [b"x-header: " + b"v" * 1000 + b"\r\n", b"a" * 2**16])
def test_a_head_without_end_is_refused(port: int, beginning: bytes, piece: bytes) -> None:
    with connect(port, beginning) as connection:
        assert flood(connection, piece, 2**26) < 2**26


def test_trailers_without_end_are_refused(port: int) -> None:
    start = b"POST /now HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    with connect(port, start) as connection:
        assert flood(connection, b"x: " + b"v" * 1000 + b"\r\n", 2**26) < 2**26


def test_chunk_extensions_without_end_are_refused(port: int) -> None:
    with connect(port, b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5") as connection:
        assert flood(connection, b";a=" + b"b" * 1000, 2**26) < 2**26


def test_a_head_that_is_too_large_is_told_so(port: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}/", headers={"x": "v" * HEAD_LIMIT}, trust_env=False)
    assert answer.status_code == 431
    assert str(HEAD_LIMIT) in answer.json()["error"]


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\nx:",
        b"POST /now HTTP/1.1\r\ncontent-length: 9\r\n\r\n123",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n1GET / HTTP/1.1\r\nx:",
    ],
    ids=["silent", "method", "header", "body-of-an-answered-request", "second-request"],
)
def test_a_request_that_does_not_arrive_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.2)
    with connect(port, beginning) as connection:
        wait_until(lambda: is_closed(connection))


def test_a_request_that_drips_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.5)

    def drips() -> bool:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x: 1\r\n")
        return is_closed(connection)

    with connect(port, b"GET / HTTP/1.1\r\n") as connection:
        wait_until(drips)


def test_an_idle_connection_and_a_long_request_outlive_the_time_for_heads(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far more than a busy machine needs to read what has arrived.
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 3.0)
    with connect(port, b"GET / HTTP/1.1\r\n\r\n") as idle, connect(port, b"GET /slow HTTP/1.1\r\n\r\n") as slow:
        assert idle.recv(2**16).startswith(b"HTTP/1.1 200")
        with connect(port) as silent:
            wait_until(lambda: is_closed(silent))
        assert not is_closed(idle)
        assert not is_closed(slow)


def test_beyond_the_limit_the_longest_waiting_connection_goes_and_no_request_in_progress(port: int) -> None:
    slow_requests.clear()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(port, b"GET /slow HTTP/1.1\r\n\r\n")) for _ in range(LIMIT // 2)]
        wait_until(lambda: len(slow_requests) == len(slow))
        half_open = [stack.enter_context(connect(port, b"GET / HTTP/1.1\r\nx:")) for _ in range(10 * LIMIT)]
        kept = LIMIT - len(slow)
        wait_until(lambda: all(map(is_closed, half_open[:-kept])))
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
        assert not any(map(is_closed, slow))
        assert not all(map(is_closed, half_open[-kept:])), "no more than needed"
