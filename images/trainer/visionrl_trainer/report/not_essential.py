"""A file for people must not end a run that trained for hours."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def not_essential(what: str) -> Iterator[None]:
    """Log an error of the block as a warning, and continue after the block."""
    try:
        yield
    except Exception as error:
        logger.warning("%s is not written: %s: %s", what, type(error).__name__, error, exc_info=True)
