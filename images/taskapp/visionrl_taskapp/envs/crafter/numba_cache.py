"""Where numba keeps compiled code in the task app's image.

Compiling the renderer and the world generation takes half a minute, so the image brings both compiled. But numba
wants to write to its cache, and a pod's root file system is read-only: a pod writes to ``NUMBA_CACHE_DIR``, an empty
volume. The image names this locator in ``NUMBA_CACHE_LOCATOR_CLASSES`` (numba's own hook); it fills the volume with a
copy of the image's cache.
"""

from __future__ import annotations

import os
import shutil
from math import floor
from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator

SEED_VARIABLE = "VISIONRL_NUMBA_SEED"
"""Folder of the cache that was filled while the image was built."""


class SeededLocator(UserProvidedCacheLocator):
    """``NUMBA_CACHE_DIR``, filled from the seed where it lacks a module's folder."""

    def ensure_cache_path(self) -> None:
        folder = Path(self.get_cache_path())
        seed = Path(os.environ.get(SEED_VARIABLE, ""), folder.name)
        if seed.is_dir() and not folder.exists():
            copy(seed, folder)
        super().ensure_cache_path()

    def get_source_stamp(self) -> tuple[int, int]:
        """Modification time in whole seconds and size: image layers keep no fractions of a second."""
        modified, size = super().get_source_stamp()
        return floor(modified), size


def copy(source: Path, target: Path) -> None:
    """The folder appears at once, complete; one that another process made meanwhile is left as it is."""
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copytree(source, unfinished)
    try:
        unfinished.rename(target)
    except OSError:
        shutil.rmtree(unfinished)
