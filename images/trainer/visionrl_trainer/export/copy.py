"""One folder, file by file, to any file system that fsspec knows. Needs no torch.

A copy is whole once its ``manifest.json`` is there, which is written last. Until then, a list of what has arrived lies
beside the files, so that a copy that was cut off goes on where it was. Each file is read back and its digest compared.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import fsspec

from visionrl.adapters import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, Manifest, ManifestError, verified_manifest

ARRIVED = ".visionrl-arrived.json"
BLOCK_BYTES = 8 << 20

logger = logging.getLogger(__name__)


class ExportError(Exception):
    """A copy that did not succeed; the message is for the user."""


def copy_folder(folder: Path, url: str) -> Manifest:
    """Copy a folder that has a manifest to ``url`` (``s3://bucket/path``, a path). Raises :class:`ExportError`; what
    else file systems raise may be retried."""
    manifest = verified_manifest(folder)
    try:
        file_system, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not in this image
        raise ExportError(f"{url}: {error}") from None
    if _read(file_system, f"{root}/{MANIFEST}") == manifest and not _missing(file_system, root, manifest):
        logger.info("%s holds this very content already", url)
        return manifest
    _remove(file_system, f"{root}/{MANIFEST}")  # from here on, the copy is none
    if "file" in _protocols(file_system):
        file_system.makedirs(root, exist_ok=True)
    arrived = _read(file_system, f"{root}/{ARRIVED}")
    files = dict(arrived.files) if arrived else {}
    for name, entry in manifest.files.items():
        path = f"{root}/{name}"
        if files.get(name) == entry and _size(file_system, path) == entry.size:
            continue
        logger.info("%s: %.1f MB", path, entry.size / 1e6)
        file_system.put_file(str(folder / name), path)
        if _digest(file_system, path) != entry:
            raise ExportError(f"{path} is not what was written: its size or its digest differs")
        files[name] = entry
        file_system.pipe_file(f"{root}/{ARRIVED}", Manifest(files).to_json().encode())
    file_system.pipe_file(f"{root}/{MANIFEST}", manifest.to_json().encode())
    _remove(file_system, f"{root}/{ARRIVED}")
    return manifest


def _missing(file_system: Any, root: str, manifest: Manifest) -> list[str]:
    return [name for name, entry in manifest.files.items() if _size(file_system, f"{root}/{name}") != entry.size]


def _read(file_system: Any, path: str) -> Manifest | None:
    """A manifest; None where there is none, or something else."""
    try:
        with file_system.open(path, "rb") as stream:
            return Manifest.parse(stream.read(MAX_MANIFEST_BYTES + 1))
    except (FileNotFoundError, ManifestError):
        return None


def _size(file_system: Any, path: str) -> int | None:
    try:
        size = file_system.info(path)["size"]
    except FileNotFoundError:
        return None
    return int(size)


def _digest(file_system: Any, path: str) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with file_system.open(path, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileEntry(size, digest.hexdigest())


def _remove(file_system: Any, path: str) -> None:
    if file_system.exists(path):
        file_system.rm_file(path)


def _protocols(file_system: Any) -> tuple[str, ...]:
    found = file_system.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def described(to: str, manifest: Manifest) -> dict[str, Any]:
    """What the job's status shows of a copy."""
    return {"to": to, "digest": manifest.digest, "bytes": manifest.size}


def termination_message(copies: list[dict[str, Any]], version: str) -> str:
    """What the exporter leaves for the operator."""
    return json.dumps({"version": version, "copies": copies})
