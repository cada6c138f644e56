"""Names of the adapter versions of one job."""

from __future__ import annotations

from visionrl.adapters import Version


class VersionNames:
    """The names that one job's adapters can have. Nothing else becomes part of a URL or a path."""

    def __init__(self, job_name: str) -> None:
        self.job_name = job_name

    def version(self, name: str) -> int | None:
        """The version that a name stands for; ``None`` where it is no name of this job's adapters."""
        try:
            version = Version.parse(name)
        except ValueError:
            return None
        return version.number if version.job == self.job_name else None
