"""Packages that a command needs beyond the library's own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from visionrl_cli.interrupt import AtOnce


@contextlib.contextmanager
def needed_packages(command: str, extras: str = "operator") -> Iterator[None]:
    """For the imports of a command: where a package is missing, end the command and say what to install. Ctrl-C ends it
    at once."""
    try:
        with AtOnce():
            yield
    except ModuleNotFoundError as error:
        print(
            f'visionrl {command} needs {error.name}, which is not installed: pip install "visionrl[{extras}]"',
            file=sys.stderr,
        )
        raise SystemExit(1) from None
