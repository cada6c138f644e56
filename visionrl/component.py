"""What a component reads from its environment variables (docs/architecture.md, *What a container gets*)."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from visionrl.job import TASKAPP_KEY, Job
from visionrl.jobfile import JobFileError, read_resolved_job

logger = logging.getLogger(__name__)

EXIT_CONFIGURATION = 2
"""The configuration cannot work: a retry would fail in the same way."""
EXIT_HUNG = 70
"""The component found that it hangs (:mod:`visionrl.hang`)."""


class ConfigurationError(Exception):
    """The environment or the job cannot work; the message is for the user."""


@dataclass(frozen=True)
class ComponentContext:
    """A running component and the addresses of the others."""

    variables: Mapping[str, str]

    @classmethod
    def from_environment(cls) -> ComponentContext:
        return cls(os.environ)

    def _required(self, name: str) -> str:
        value = self.variables.get(name)
        if not value:
            raise ConfigurationError(f"environment variable {name} is not set")
        return value

    @property
    def job_file(self) -> Path:
        return Path(self._required("VISIONRL_JOB"))

    def job(self) -> Job:
        """The job as it is now: fields that may change while it runs are read again."""
        return read_job(self.job_file)

    @property
    def key(self) -> str:
        """The job's key. Raises :class:`ConfigurationError` where the file is missing or empty."""
        path = Path(self._required("VISIONRL_KEY_FILE"))
        try:
            key = path.read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"VISIONRL_KEY_FILE: cannot read {path}: {error.strerror}") from None
        if not key:
            raise ConfigurationError(
                f"VISIONRL_KEY_FILE: {path} is empty; delete it and run `visionrl run` again, or delete the job's "
                "Secret in the cluster: a new key is made, and all components start with it"
            )
        return key

    @property
    def taskapp_key(self) -> str:
        """The key of a task app that runs elsewhere (`taskApp.url`)."""
        key = self.variables.get(TASKAPP_KEY, "").strip()
        if not key:
            raise ConfigurationError(
                f"spec.taskApp.keySecret: needed with url, for the server's key ({TASKAPP_KEY} on one machine)"
            )
        return key

    @property
    def host(self) -> str:
        return self.variables.get("VISIONRL_HOST", "127.0.0.1")

    @property
    def port(self) -> int:
        value = self.variables.get("VISIONRL_PORT", "8000")
        if not value.isdecimal() or not 0 < int(value) < 65536:
            raise ConfigurationError(f"VISIONRL_PORT: {value!r} is not a port")
        return int(value)

    @property
    def taskapp_url(self) -> str:
        return self._required("VISIONRL_TASKAPP_URL")

    @property
    def inference_url(self) -> str:
        return self._required("VISIONRL_INFERENCE_URL")

    @property
    def trainer_url(self) -> str:
        return self._required("VISIONRL_TRAINER_URL")

    @property
    def run_dir(self) -> Path:
        return Path(self._required("VISIONRL_RUN_DIR"))

    @property
    def cache_dir(self) -> Path:
        return Path(self._required("VISIONRL_CACHE_DIR"))


def read_job(path: Path) -> Job:
    """The resolved job (JSON). Raises :class:`ConfigurationError`.

    What this component does not know is left out with a warning: the operator that wrote the file may be newer than
    the component's image. After an upgrade it is, for every running job.
    """
    try:
        job, unknown = read_resolved_job(path)
    except OSError as error:
        raise ConfigurationError(f"VISIONRL_JOB: cannot read {path}: {error.strerror}") from None
    except JobFileError as error:
        raise ConfigurationError(f"VISIONRL_JOB: {error}") from None
    if unknown:
        _warn_once(f"VISIONRL_JOB: left out, unknown to this version: {', '.join(unknown)}")
    return job


@functools.cache
def _warn_once(message: str) -> None:
    """The trainer reads its job again in every iteration."""
    logger.warning("%s", message)
