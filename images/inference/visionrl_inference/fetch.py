"""Folders from the trainer, over HTTP: a manifest of sizes and SHA-256 digests, then the files it names.

A folder arrives whole or not at all: files are checked while they stream into a draft, which then takes its place
with one rename. Used for the base model (:mod:`visionrl_inference.base_model`) and for adapters.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from visionrl.durable import fsync, sha256

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
# Plain file names only: what the trainer sends never chooses another folder.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FetchError(Exception):
    """The folder did not arrive; worth another try."""


class MissingError(FetchError):
    """The trainer has no such folder (404)."""


class NotReadyError(FetchError):
    """The trainer has not made the folder yet, or is not up yet (503, connection refused)."""


class KeyRefusedError(FetchError):
    """The trainer does not accept the key (401, 403)."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, by name."""

    files: Mapping[str, FileEntry]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over names, sizes and digests: the identity of the folder's content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as the trainer writes it, files in the order of their names."""
        files = {name: {"size": e.size, "sha256": e.sha256} for name, e in sorted(self.files.items())}
        return json.dumps({"files": files})


def parse_manifest(data: Any) -> Manifest:
    """Read a manifest's JSON value. Raises :class:`FetchError` for anything that is not one."""
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not files:
        raise FetchError(f"{MANIFEST} names no files")
    entries = {}
    for name, entry in files.items():
        size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise FetchError(f"{MANIFEST} has the file name {name!r}")
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise FetchError(f"{MANIFEST} has no size and sha256 for {name}")
        entries[name] = FileEntry(size, sha256)
    return Manifest(entries)


def trainer_client(url: str, key: str, timeout_s: float = 30.0) -> httpx.Client:
    """A client for the trainer. Proxies of the environment are not used: the trainer is a neighbour."""
    return httpx.Client(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {key}"},
        timeout=httpx.Timeout(timeout_s, connect=5.0),
        trust_env=False,
    )


def fetch_manifest(client: httpx.Client, path: str) -> Manifest:
    """``GET <path>/manifest.json``."""
    with _answer(client, f"{path}/{MANIFEST}") as response:
        try:
            return parse_manifest(json.loads(response.read()))
        except ValueError as error:
            raise FetchError(f"{path}/{MANIFEST} is not JSON: {error}") from None


def fetch_folder(
    client: httpx.Client, path: str, manifest: Manifest, target: Path, check: Callable[[Path], None] | None = None
) -> None:
    """Download the manifest's files from ``<path>/<file>`` into the folder ``target``, which must not exist.

    ``check`` sees the complete draft before it takes its place; what it raises is passed on. The manifest is kept in
    the folder as ``manifest.json``, so :func:`is_intact` can verify it later.
    """
    draft = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    try:
        for name, entry in manifest.files.items():
            _fetch_file(client, f"{path}/{name}", entry, draft / name)
        if check is not None:
            check(draft)
        (draft / MANIFEST).write_text(manifest.to_json())
        draft.chmod(0o755)
        fsync(draft)
        draft.rename(target)
        fsync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_intact(folder: Path) -> bool:
    """Whether every file of a fetched folder still has its manifest's digest."""
    try:
        manifest = parse_manifest(json.loads((folder / MANIFEST).read_text()))
        return all(sha256(folder / name) == entry.sha256 for name, entry in manifest.files.items())
    except (OSError, ValueError, FetchError):
        return False


def _fetch_file(client: httpx.Client, path: str, entry: FileEntry, target: Path) -> None:
    digest, received = hashlib.sha256(), 0
    with _answer(client, path) as response, target.open("wb") as file:
        for chunk in response.iter_bytes(CHUNK_BYTES):
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


@contextmanager
def _answer(client: httpx.Client, path: str) -> Iterator[httpx.Response]:
    """A successful streaming answer; every failure as a :class:`FetchError`."""
    try:
        with client.stream("GET", path) as response:
            if response.status_code == 404:
                raise MissingError(f"{path}: the trainer has no such file")
            if response.status_code == 503:
                raise NotReadyError(f"{path}: the trainer is not ready")
            if response.status_code in (401, 403):
                raise KeyRefusedError(f"{path}: the trainer refuses the key")
            if response.status_code != 200:
                raise FetchError(f"{path}: the trainer answered {response.status_code}")
            yield response
    except httpx.ConnectError as error:
        raise NotReadyError(f"{path}: no connection to the trainer ({error})") from error
    except httpx.HTTPError as error:
        raise FetchError(f"{path}: {type(error).__name__} {error}".rstrip()) from error
