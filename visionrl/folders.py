"""Folders that several processes share, found by name and known by content: whole where their files are those of
their ``manifest.json``."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from visionrl.adapters import Manifest, ManifestError, verified_manifest
from visionrl.durable import fsync

logger = logging.getLogger(__name__)


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
    """Give a finished draft its name, in one rename.

    Where a whole folder (:func:`is_whole`) has the name, another process was first: that one stays, and the draft is
    left to the caller. A damaged folder makes room. Raises ``OSError``.
    """
    try:
        draft.rename(target)
    except OSError:  # a rename does not replace a folder that has files
        if is_whole(target, manifest):
            return
        with tempfile.TemporaryDirectory(prefix=".damaged-", dir=target.parent) as room:
            if target.exists():
                shutil.move(target, room)
            draft.rename(target)
    fsync(target.parent)
