"""Fetched adapters on disk, a folder each, whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from visionrl.adapters import ManifestError, Version, verified_manifest

LOCK = "lock"
ABANDONED_SECONDS = 600.0
"""A folder whose owner has not been heard of for so long, and does not hold its lock, has none any more."""


class Store:
    """The adapters of one API server, in a folder of its own below ``root``.

    Servers may share ``root``, also with those of other jobs and on other machines: vLLM reads a loaded adapter again
    later and ends where its folder is gone, so nobody may tidy up another's. A folder has an owner as long as its lock
    is held, and, for file systems whose locks end at the machine, while :meth:`heartbeat` touches it.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(root)
        self.root = Path(tempfile.mkdtemp(prefix="server-", dir=root))
        self._lock = (self.root / LOCK).open("wb")
        with contextlib.suppress(OSError):  # no locks here: the heartbeat alone says that it has an owner
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def folder(self, name: str) -> Path:
        """The folder of an adapter, whether or not it is there."""
        return self.root / name

    def digest(self, version: Version) -> str | None:
        """The manifest's digest of an adapter that is here, whole and what its name says; else ``None``."""
        try:
            manifest = verified_manifest(self.folder(version.name))
        except (ManifestError, OSError):
            return None
        return manifest.digest if version.matches(manifest) else None

    def names(self) -> set[str]:
        """Adapters on disk; drafts have a leading dot."""
        return {path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")}

    def remove(self, name: str) -> None:
        """Take an adapter out of sight in one step, then delete it."""
        with tempfile.TemporaryDirectory(prefix=".old-", dir=self.root) as grave:
            if self.folder(name).is_dir():
                self.folder(name).rename(Path(grave) / name)

    def heartbeat(self) -> None:
        """Say that the folder has an owner."""
        os.utime(self.root / LOCK)


def remove_abandoned(root: Path) -> None:
    """Delete the folders of servers that are gone. One that another process deletes at this moment is passed over."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if _is_abandoned(folder / LOCK):
                shutil.rmtree(folder)


def _is_abandoned(lock: Path) -> bool:
    """Raises ``OSError`` where it has an owner, or is none of our folders."""
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(file.fileno()).st_mtime >= ABANDONED_SECONDS
