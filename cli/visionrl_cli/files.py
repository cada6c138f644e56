"""Files that a command cannot use."""

from __future__ import annotations

import sys
from pathlib import Path

from visionrl.jobfile import JobFileError


def unusable(file: Path, error: JobFileError | OSError) -> int:
    """Say why a job file cannot be used; the exit code."""
    print(error if isinstance(error, JobFileError) else f"{file}: {error.strerror}", file=sys.stderr)
    return 1
