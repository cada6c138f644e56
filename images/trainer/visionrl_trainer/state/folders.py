"""Folders that appear and disappear in one step, whenever the process is killed.

A folder is filled under a hidden name and then renamed; to delete it, it is first renamed to a hidden name. A folder
that cannot be deleted now, because it is still read over a network file system, is deleted at the next start.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from visionrl.durable import fsync

logger = logging.getLogger(__name__)

DRAFT, RETIRED = ".draft-", ".retired-"


def new_draft(parent: Path, name: str) -> Path:
    """An empty hidden folder to fill."""
    draft = parent / f"{DRAFT}{name}"
    _delete(draft)
    draft.mkdir(parents=True, exist_ok=True)
    return draft


def place(draft: Path, target: Path) -> None:
    """Rename a filled draft, whose files are on disk, to its target. A former target is deleted afterwards."""
    former = _hide(target) if target.exists() else None
    draft.rename(target)
    fsync(target.parent)
    if former is not None:
        _delete(former)


def retire(folder: Path) -> None:
    """Hide a folder, then delete it. A failure is logged and left for :func:`sweep`."""
    try:
        _delete(_hide(folder))
    except OSError as error:
        logger.warning("%s is not deleted yet: %s", folder, error)


def sweep(parent: Path) -> None:
    """Delete the hidden folders of a killed process, and no other hidden files."""
    for leftover in parent.iterdir():
        if leftover.name.startswith((DRAFT, RETIRED)):
            _delete(leftover)


def _hide(folder: Path) -> Path:
    """Rename a folder to a hidden name that is free."""
    number = 0
    while (hidden := folder.with_name(f"{RETIRED}{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(hidden)


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s is not deleted yet: %s", folder, error)
