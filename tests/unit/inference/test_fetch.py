"""What a trainer may send at worst: each answer costs one attempt, a bounded time and little memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from visionrl.adapters import Manifest
from visionrl_inference import fetch
from visionrl_inference.fetch import FetchError, fetch_folder, fetch_manifest, trainer_client

CONTENT = b"x" * 100
MANIFEST = json.dumps({"files": {"file": {"size": 100, "sha256": hashlib.sha256(CONTENT).hexdigest()}}}).encode()
MEGABYTE = b" " * (1 << 20)
MEMORY_LIMIT = 20 << 20

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A server that reads a request's headers and then sends what ``answer`` writes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def body(data: bytes, headers: bytes = b"") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n" % (len(data), headers) + data)
        await writer.drain()

    return answer


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


OK = b"HTTP/1.1 200 OK\r\n\r\n"
UNENDING = {
    "body": endless(OK, MEGABYTE),
    "body, drop by drop": endless(OK, b" ", 0.02),
    "headers": endless(b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"a" * 1000 + b"\r\n"),
    "headers, drop by drop": endless(b"HTTP/1.1 200 OK\r\n", b"x: a\r\n", 0.02),
    "one header": endless(b"HTTP/1.1 200 OK\r\nx: ", MEGABYTE),
    "nothing": endless(b"", b"", 0.02),
}
WRONG = {
    "other bytes": body(b"y" * 100),
    "too short": body(CONTENT[:50]),
    "too long": body(CONTENT * 2),
    "compressed": body(zlib.compress(CONTENT, wbits=31), b"content-encoding: gzip\r\n"),
}
NO_MANIFEST = {
    "html": body(b"<html>"),
    "deep": body(b"[" * 100_000),
    "digits": body(b'{"files": {"f": {"size": ' + b"9" * 100_000 + b"}}}"),
    "surrogate": body(b'{"files": {"\\ud800": {}}}'),
    "not UTF-8": body(b"\xff\xfe\xfa"),
    "other folder": body(MANIFEST.replace(b'"file"', b'"../file"')),
}


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.5)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


async def manifest_of(answer: Answer) -> Manifest:
    async with serving(answer) as url, trainer_client(url, "key") as client:
        return await fetch_manifest(client, "/base")


async def folder_of(answer: Answer, target: Path) -> None:
    async with serving(answer) as url, trainer_client(url, "key") as client:
        await fetch_folder(client, "/base", Manifest.parse(MANIFEST), target)


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_trainer_that_answers_as_it_should(tmp_path: Path) -> None:
    assert (await manifest_of(body(MANIFEST))).size == 100
    await folder_of(body(CONTENT), tmp_path / "base")
    assert (tmp_path / "base" / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("name", UNENDING)
async def test_an_answer_without_an_end_is_given_up(name: str, tmp_path: Path) -> None:
    with bounded_memory(), pytest.raises(FetchError):
        await asyncio.wait_for(manifest_of(UNENDING[name]), 60)
    with bounded_memory(), pytest.raises(FetchError):
        await asyncio.wait_for(folder_of(UNENDING[name], tmp_path / "base"), 60)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", NO_MANIFEST)
async def test_what_is_no_manifest_is_not_followed(name: str) -> None:
    with bounded_memory(), pytest.raises(FetchError, match=r"manifest\.json"):
        await manifest_of(NO_MANIFEST[name])


@pytest.mark.parametrize("name", WRONG)
async def test_a_file_that_is_not_its_manifests_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError):
        await folder_of(WRONG[name], tmp_path / "base")
    assert left_in(tmp_path) == []
