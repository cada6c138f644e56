"""Fetched adapters on disk, a folder each, whole or absent."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class Store:
    """The adapters of one server process.

    Opening it empties the folder: a new process has none loaded, and a version of the same name may stem from an
    earlier run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)

    def folder(self, name: str) -> Path:
        """Where an adapter lies or would lie."""
        return self.root / name

    def has(self, name: str) -> bool:
        return self.folder(name).is_dir()

    def names(self) -> set[str]:
        """Adapters on disk; drafts have a leading dot."""
        return {path.name for path in self.root.iterdir() if not path.name.startswith(".")}

    def remove(self, name: str) -> None:
        """Take an adapter out of sight in one step, then delete it."""
        with tempfile.TemporaryDirectory(prefix=".old-", dir=self.root) as grave:
            if self.has(name):
                self.folder(name).rename(Path(grave) / name)
