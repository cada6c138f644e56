"""The run folder of a job on this machine, ``runs/<job>/``.

The trainer writes its results here; the executor adds the job and its key, the logs, the status and a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from visionrl.durable import write_atomically
from visionrl.job import Component, Job
from visionrl.status import JobStatus
from visionrl_core.manifests.common import SUFFIXES, Manifest
from visionrl_core.manifests.config import JOB_FILE, KEY_FILE


class LocalError(Exception):
    """What keeps a job from running on this machine; the message is for the user."""


class LocalFolder:
    """Paths and files of one job."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.job_file = self.root / "job" / JOB_FILE
        self.key_file = self.root / "secret" / KEY_FILE
        self.status_file = self.root / "status.json"
        self.lock_file = self.root / ".lock"
        self.summary_file = self.root / "summary.json"

    def log(self, component: Component) -> Path:
        return self.root / "logs" / f"{SUFFIXES[component]}.log"

    # --- what the components read

    def accepted(self) -> Job | None:
        """The job that runs here; None before the first run."""
        if not self.job_file.exists():
            return None
        try:
            return Job.model_validate_json(self.job_file.read_text(encoding="utf-8"))
        except ValidationError:
            raise LocalError(f"{self.job_file} is of another version; --fresh starts over") from None

    def write_job(self, text: str) -> None:
        write_atomically(self.job_file, text)

    def write_key(self, key: str) -> None:
        self.key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(key)

    def key(self) -> str | None:
        return self.key_file.read_text() if self.key_file.exists() else None

    def mount(self, volume: Manifest) -> Path | None:
        """The folder in place of a volume; None for ``/tmp`` and shared memory, which this machine has already."""
        if "configMap" in volume:
            return self.job_file.parent
        if "secret" in volume:
            return self.key_file.parent
        match volume["name"]:
            case "cache":
                return cache_folder()
            case "run" | "traces":
                return self.root
        return None

    # --- what the executor remembers

    def status(self) -> JobStatus:
        if not self.status_file.exists():
            return JobStatus()
        try:
            return JobStatus.model_validate_json(self.status_file.read_text(encoding="utf-8"))
        except ValidationError:
            raise LocalError(f"{self.status_file} is of another version; --fresh starts over") from None

    def write_status(self, status: JobStatus) -> None:
        write_atomically(self.status_file, status.model_dump_json(by_alias=True, indent=2) + "\n")

    def clear(self) -> None:
        """Delete everything but the lock."""
        for entry in self.root.iterdir():
            if entry == self.lock_file:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One executor per run folder. The lock ends with the process that holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "unknown"
                raise LocalError(f"{self.root} is in use by another visionrl run (pid {holder})") from None
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            yield
            stream.truncate(0)


def cache_folder() -> Path:
    """Models and compiled kernels, shared by all jobs of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionrl"


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, at most 16 KiB of it."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 16384))
        text = stream.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
