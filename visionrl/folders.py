"""Folders that are found by name and known by content: whole where their files are those of their ``manifest.json``.

They appear and disappear in one step, whenever a process is killed: a folder is filled under a hidden name and then
renamed; to delete it, it is first renamed to a hidden name. A folder that cannot be deleted now, because it is still
read over a network file system, is left for :func:`sweep`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

from visionrl.adapters import Manifest, ManifestError, verified_manifest
from visionrl.durable import fsync

logger = logging.getLogger(__name__)

DRAFT, RETIRED = ".draft-", ".retired-"


def new_draft(parent: Path, name: str) -> Path:
    """An empty hidden folder to fill, of a process that has ``parent`` for itself."""
    draft = parent / f"{DRAFT}{name}"
    _delete(draft)
    draft.mkdir(exist_ok=True)
    return draft


def is_whole(folder: Path, manifest: Manifest | None = None) -> bool:
    """Whether the folder's files are those of its manifest, and this manifest is ``manifest`` where one is given.
    A damaged folder is named in the log."""
    if not folder.is_dir():
        return False
    try:
        found = verified_manifest(folder)
    except (ManifestError, OSError) as error:
        logger.warning("%s is not used: %s", folder, error)
        return False
    return manifest is None or found == manifest


def place(draft: Path, target: Path, manifest: Manifest | None = None) -> None:
    """Give a finished draft, whose files are on disk, its name; the draft is gone afterwards.

    Where a whole folder (:func:`is_whole`) has the name, that one stays: it has this content, or another process was
    first. A damaged folder makes room. Raises ``OSError``.
    """
    while not _renamed(draft, target):
        if is_whole(target, manifest):
            _delete(draft)
            return
        with contextlib.suppress(FileNotFoundError):  # another process hid it
            _delete(_hide(target))
    fsync(target.parent)


def retire(folder: Path) -> None:
    """Hide a folder, then delete it. A failure is logged and left for :func:`sweep`."""
    try:
        _delete(_hide(folder))
    except OSError as error:
        logger.warning("%s is not deleted yet: %s", folder, error)


def sweep(parent: Path) -> None:
    """Delete the hidden folders of a killed process, and no other hidden files; of a process that has ``parent`` for
    itself."""
    for leftover in parent.iterdir():
        if leftover.name.startswith((DRAFT, RETIRED)):
            _delete(leftover)


def _renamed(draft: Path, target: Path) -> bool:
    """Whether the draft has the name now; it has not where something else has it."""
    try:
        draft.rename(target)
    except OSError:  # a rename does not replace a folder that has files
        if not (draft.exists() and target.exists()):
            raise
        return False
    return True


def _hide(path: Path) -> Path:
    """Rename a folder, or a file that has its name, to a hidden name that is free."""
    number = 0
    while (hidden := path.with_name(f"{RETIRED}{path.name}.{number}")).exists():
        number += 1
    return path.rename(hidden)


def _delete(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s is not deleted yet: %s", path, error)
