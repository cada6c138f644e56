"""Packages that a command needs beyond the library's own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def needed_packages(command: str, extras: str = "operator") -> Iterator[None]:
    """Around the imports of a command that needs the code of other parts: ends the command with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(
            f'visionrl {command} needs {error.name}, which is not installed: pip install "visionrl[{extras}]"',
            file=sys.stderr,
        )
        raise SystemExit(1) from None
