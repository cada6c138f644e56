"""Checkpoints: folders with a manifest, of which the newest undamaged one is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from visionrl import folders
from visionrl.adapters import MANIFEST, ManifestError, read_manifest, write_manifest
from visionrl.component import ConfigurationError

logger = logging.getLogger(__name__)

STATE = "state.json"
DAMAGED = ".damaged"
"""Suffix of a damaged checkpoint's name."""

T = TypeVar("T")


class NoWholeCheckpoint(ConfigurationError):
    """There are checkpoints, but all of them are damaged."""


class Checkpoints:
    """The checkpoints under ``root``, in the order of the numbers of their names. ``number`` returns ``None`` for a
    name that is not a checkpoint's."""

    def __init__(self, root: Path, keep: int, number: Callable[[str], int | None]) -> None:
        self.root, self.keep, self._number = root, keep, number
        root.mkdir(parents=True, exist_ok=True)
        folders.sweep(root)

    def names(self) -> list[str]:
        """Checkpoints, oldest first."""
        numbers = {path.name: self._number(path.name) for path in self.root.iterdir() if path.is_dir()}
        return sorted((name for name in numbers if numbers[name] is not None), key=lambda name: (numbers[name], name))

    def save(self, name: str, fill: Callable[[Path], None]) -> None:
        """Make a checkpoint of the files that ``fill`` writes, unless this name exists, and keep the newest few."""
        if (self.root / name).exists():
            return
        draft = folders.new_draft(self.root, name)
        fill(draft)
        write_manifest(draft)
        folders.place(draft, self.root / name)
        for old in self.names()[: -self.keep]:
            folders.retire(self.root / old)

    def load(self, read: Callable[[Path], T]) -> T | None:
        """The result of ``read`` for the newest undamaged checkpoint; ``None`` if there are no checkpoints.

        A checkpoint is damaged if its files differ from its manifest, or if ``read`` raises :class:`ManifestError` or
        ``FileNotFoundError``: it is renamed, with a warning. Raises :class:`NoWholeCheckpoint` if all are damaged, and
        ``OSError`` if one could not be read and no other is left.
        """
        unreadable: OSError | None = None
        for name in reversed(self.names()):
            folder = self.root / name
            try:
                read_manifest(folder).check(folder)
                return read(folder)
            except (ManifestError, FileNotFoundError) as error:
                logger.warning("checkpoint %s is damaged and passed over: %s", name, error)
                self._set_aside(folder)
            except OSError as error:
                logger.warning("checkpoint %s cannot be read and is passed over: %s", name, error)
                unreadable = unreadable or error
        if unreadable is not None:
            raise unreadable
        if unusable := self._unusable():
            raise NoWholeCheckpoint(
                f"{self.root}: no checkpoint is whole ({', '.join(unusable)}), so the run cannot be resumed; put one "
                "back, or start over with an empty run folder (visionrl run --fresh)"
            )
        return None

    def _set_aside(self, folder: Path) -> None:
        target = folder.with_name(folder.name + DAMAGED)
        if target.exists():
            folders.retire(target)
        folder.rename(target)

    def _unusable(self) -> list[str]:
        """Names of the entries with the files of a checkpoint."""
        # os.path.exists is false for a folder that may not be read, such as lost+found.
        found = (path for path in self.root.iterdir() if not path.name.startswith("."))
        return sorted(p.name for p in found if any(os.path.exists(p / file) for file in (STATE, MANIFEST)))  # noqa: PTH110
