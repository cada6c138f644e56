"""Names of adapter versions: ``<job>-v000012``."""

from __future__ import annotations

import re


class VersionNames:
    """The names that one job's adapters can have. Nothing else becomes part of a URL or a path."""

    def __init__(self, job_name: str) -> None:
        self._pattern = re.compile(rf"{re.escape(job_name)}-v([0-9]{{6}})")

    def version(self, name: str) -> int | None:
        """The version that a name stands for; ``None`` where it is no name of this job's adapters."""
        match = self._pattern.fullmatch(name)
        return int(match[1]) if match else None
