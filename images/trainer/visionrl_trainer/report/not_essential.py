"""What is for people to look at must not cost what was trained."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def not_essential(what: str) -> Iterator[None]:
    """Log an error within the block, and leave it at that."""
    try:
        yield
    except Exception as error:
        logger.warning("%s is not written: %s: %s", what, type(error).__name__, error, exc_info=True)
