"""Files that several commands read, or cannot use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from visionrl.documents import read_text
from visionrl.jobfile import JobFileError


def unusable(file: Path, error: JobFileError | OSError) -> int:
    """Say why a job file cannot be used; the exit code."""
    print(error if isinstance(error, JobFileError) else f"{file}: {error.strerror}", file=sys.stderr)
    return 1


def given_key(file: Path | None) -> str:
    """A task app's key, from the file or from the reference's variable; empty where there is none. Raises
    :class:`visionrl.documents.DocumentError`, ``OSError``."""
    return read_text(file).strip() if file else os.environ.get("ENVIRONMENT_API_KEY", "").strip()
