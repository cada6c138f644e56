"""Folders from the trainer, over HTTP: a manifest of sizes and SHA-256 digests, then the files that it names.

A folder arrives whole or not at all: files are checked while they stream into a draft, which then takes its place
with one rename. Every answer has a size limit and a total deadline, so that a trainer that sends without end, or a
byte a second, costs one attempt. Used for the base model (:mod:`visionrl_inference.base_model`) and for adapters.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from visionrl.adapters import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, Manifest, ManifestError
from visionrl.durable import fsync
from visionrl.folders import place

CHUNK_BYTES = 1 << 20
ANSWER_SECONDS = 10.0
"""Total time for a manifest, and for a file on top of its transfer."""
SLOWEST_BYTES_PER_SECOND = 1 << 20
"""A file that arrives more slowly is given up."""


class FetchError(Exception):
    """The folder did not arrive; worth another try."""


class MissingError(FetchError):
    """The trainer has no such folder (404)."""


class NotReadyError(FetchError):
    """The trainer has not made the folder yet, or is not up yet (503, connection refused)."""


class KeyRefusedError(FetchError):
    """The trainer does not accept the key (401, 403)."""


def trainer_client(url: str, key: str, timeout_s: float = 30.0) -> aiohttp.ClientSession:
    """A client for the trainer, made in a running event loop; ``timeout_s`` is the longest silence. Answers are asked
    for uncompressed: their sizes are those of the manifest. Proxies of the environment are not used: the trainer is in
    the same cluster.

    aiohttp takes a third of the processor time that httpx takes for an adapter of 66 MB, which the next rollouts wait
    for.
    """
    return aiohttp.ClientSession(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


async def fetch_manifest(client: aiohttp.ClientSession, path: str) -> Manifest:
    """``GET <path>/manifest.json``. Raises :class:`FetchError`."""
    body = bytearray()
    async with _answer(client, f"{path}/{MANIFEST}", ANSWER_SECONDS) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_MANIFEST_BYTES:
                raise FetchError(f"{path}/{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.parse(bytes(body))
    except ManifestError as error:
        raise FetchError(f"{path}: {error}") from None


async def fetch_folder(
    client: aiohttp.ClientSession,
    path: str,
    manifest: Manifest,
    target: Path,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Download the manifest's files from ``<path>/<file>`` into the folder ``target``.

    A damaged folder that is there makes room. ``check`` sees the complete draft before it takes its place; what it
    raises is passed on. The folder keeps its ``manifest.json``, so that it can be verified later. Raises
    :class:`FetchError`, ``OSError`` where the folder cannot be written.
    """
    draft = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    try:
        for name, entry in manifest.files.items():
            await _fetch_file(client, f"{path}/{name}", entry, draft / name)
        check(draft)
        _finish(draft, manifest, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _finish(draft: Path, manifest: Manifest, target: Path) -> None:
    (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    draft.chmod(0o755)
    fsync(draft)
    place(draft, target, manifest)


async def _fetch_file(client: aiohttp.ClientSession, path: str, entry: FileEntry, target: Path) -> None:
    digest, received = hashlib.sha256(), 0
    seconds = ANSWER_SECONDS + entry.size / SLOWEST_BYTES_PER_SECOND
    with target.open("wb") as file:
        async with _answer(client, path, seconds) as chunks:
            async for chunk in chunks:
                received += len(chunk)
                if received > entry.size:
                    raise FetchError(f"{path} has more than the {entry.size} bytes of its manifest")
                digest.update(chunk)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if received < entry.size:
        raise FetchError(f"{path} ended after {received} of {entry.size} bytes")
    if digest.hexdigest() != entry.sha256:
        raise FetchError(f"{path} has the SHA-256 {digest.hexdigest()}, its manifest says {entry.sha256}")


@asynccontextmanager
async def _answer(client: aiohttp.ClientSession, path: str, seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a successful answer; every failure as a :class:`FetchError`, also one that takes longer."""
    try:
        async with asyncio.timeout(seconds), client.get(path, allow_redirects=False) as response:
            _check_status(path, response)
            yield response.content.iter_chunked(CHUNK_BYTES)
    except aiohttp.ClientConnectorError as error:
        raise NotReadyError(f"{path}: no connection to the trainer ({error})") from error
    except aiohttp.ClientError as error:
        raise FetchError(f"{path}: {type(error).__name__} {error}".rstrip()) from error
    except TimeoutError:
        raise FetchError(f"{path} is not complete after {seconds:.0f} s") from None


def _check_status(path: str, response: aiohttp.ClientResponse) -> None:
    if response.status == 404:
        raise MissingError(f"{path}: the trainer has no such file")
    if response.status == 503:
        raise NotReadyError(f"{path}: the trainer is not ready")
    if response.status in (401, 403):
        raise KeyRefusedError(f"{path}: the trainer refuses the key")
    if response.status != 200:
        raise FetchError(f"{path}: the trainer answered {response.status}")
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise FetchError(f"{path}: the trainer answered in the encoding {encoding!r}, which was not asked for")
