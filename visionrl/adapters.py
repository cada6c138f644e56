"""Adapter versions and the folders that the trainer offers: how they are named, listed and recognised.

A version's name holds the digest of its content, so a name never means two adapters: not after a resume, not in
another run of the same job name, not in a cache that several runs share.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionrl.durable import fsync, sha256

MANIFEST = "manifest.json"
ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
MAX_MANIFEST_BYTES = 1 << 20
DIGEST_DIGITS = 12
"""Hexadecimal digits of the content's digest in a version's name."""

ADAPTERS_PATH = "/visionrl/adapters"
"""Below it, an inference server tells what it serves by an adapter's name: ``{"digest": <digest of its manifest>}``."""
SERVER_HEADER = "x-visionrl-server"
"""Header of an inference server's answers: its identifier, another one after each start."""

# Plain file names only: a manifest never chooses another folder.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(rf"(?P<job>.+)-v(?P<number>[0-9]{{6}})-(?P<digest>[0-9a-f]{{{DIGEST_DIGITS}}})")


def probe_job(job: str) -> str:
    """What :attr:`Version.job` is for the adapter that shows whether a server applies adapters at all."""
    return f"{job}-probe"


class ManifestError(ValueError):
    """A manifest that is none, or a folder that is not what its manifest says; the message says what is wrong."""


@dataclass(frozen=True, order=True)
class Version:
    """One adapter of a job: ``crafter-v000012-0a1b2c3d4e5f``."""

    job: str
    number: int
    """Counts up; a run never uses a number for two adapters."""
    digest: str
    """The first digits of its manifest's digest."""

    @property
    def name(self) -> str:
        """What requests ask for as ``model``, and what the status shows."""
        return f"{self.job}-v{self.number:06d}-{self.digest}"

    @classmethod
    def of(cls, job: str, number: int, manifest: Manifest) -> Version:
        """The version that these files are."""
        return cls(job, number, manifest.digest[:DIGEST_DIGITS])

    @classmethod
    def parse(cls, name: str) -> Version:
        """Raises ``ValueError`` for any text that is not the name of a version."""
        match = _VERSION.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of an adapter version")
        return cls(match["job"], int(match["number"]), match["digest"])

    def matches(self, manifest: Manifest) -> bool:
        """Whether a folder with this manifest is this version's content."""
        return manifest.digest[:DIGEST_DIGITS] == self.digest


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
        """The text of ``manifest.json``, files in the order of their names."""
        files = {name: {"size": e.size, "sha256": e.sha256} for name, e in sorted(self.files.items())}
        return json.dumps({"files": files})

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Raises :class:`ManifestError` for anything else."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{MANIFEST} is not JSON: {error}") from None
        files = document.get("files") if isinstance(document, dict) else None
        if not isinstance(files, dict) or not files:
            raise ManifestError(f"{MANIFEST} names no files")
        return cls({name: _entry(name, entry) for name, entry in files.items()})

    @classmethod
    def of_folder(cls, folder: Path) -> Manifest:
        """The files of a folder, except its own ``manifest.json`` and hidden ones, which file systems and file managers
        leave."""
        paths = (path for path in folder.iterdir() if path.name != MANIFEST and not path.name.startswith("."))
        return cls({path.name: FileEntry(path.stat().st_size, sha256(path)) for path in paths})

    def check(self, folder: Path) -> None:
        """Read every file that is named here. Raises :class:`ManifestError` where one is missing or damaged,
        ``OSError`` where one cannot be read."""
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ManifestError(f"{folder.name}: {name} is missing")
            if FileEntry(path.stat().st_size, sha256(path)) != entry:
                raise ManifestError(f"{folder.name}: {name} is damaged: its content is not what {MANIFEST} says")


def write_manifest(folder: Path) -> Manifest:
    """Write the folder's ``manifest.json``; every file of the folder is on disk afterwards."""
    manifest = Manifest.of_folder(folder)
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a folder. Raises :class:`ManifestError`, or ``OSError`` where it cannot be read."""
    with (folder / MANIFEST).open("rb") as file:
        return Manifest.parse(file.read(MAX_MANIFEST_BYTES + 1))


def verified_manifest(folder: Path) -> Manifest:
    """The manifest of a folder whose files are exactly those that it names, byte for byte.

    Raises :class:`ManifestError` where they are not, ``OSError`` where one cannot be read.
    """
    manifest = read_manifest(folder)
    manifest.check(folder)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if extra := names - manifest.files.keys() - {MANIFEST}:
        raise ManifestError(f"{folder.name}: {min(extra)} is not in {MANIFEST}")
    return manifest


def _entry(name: str, entry: Any) -> FileEntry:
    size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
        raise ManifestError(f"{MANIFEST} has the file name {name!r}")
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ManifestError(f"{MANIFEST} has no size and sha256 for {name}")
    return FileEntry(size, digest)
