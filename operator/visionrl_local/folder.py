"""The run folder of a job on this machine, ``runs/<job>/``.

The trainer and the task app write their results here; the executor adds the job and its key, the logs, the status and a
lock. No damaged file of the executor ends a run: it is made again, with a note that says what is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from visionrl.durable import write_atomically
from visionrl.job import Component, Job
from visionrl.status import JobStatus
from visionrl.versions import validate_known
from visionrl_core.clock import moment
from visionrl_core.manifests.common import SUFFIXES, Manifest
from visionrl_core.manifests.config import JOB_FILE, KEY_FILE
from visionrl_local import processes
from visionrl_local.processes import Supervisor

MAX_FILE_BYTES = 16 * 2**20
"""Far above any job or status; a larger file is damaged."""

Note = Callable[[str], None]


class LocalError(Exception):
    """What keeps a job from running on this machine; the message is for the user."""


class LocalFolder:
    """Paths and files of one job."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.supervisor = Supervisor(self.root)
        self.job_file = self.root / "job" / JOB_FILE
        self.key_file = self.root / "secret" / KEY_FILE
        self.status_file = self.root / "status.json"
        self.lock_file = self.root / ".lock"
        self.summary_file = self.root / "summary.json"
        self.trainers_job_file = self.root / "config.json"
        self.submitted_file = self.root / "submitted.json"
        """The job file of a run that another command started (``visionrl train``)."""
        self._identities: list[tuple[int, int] | None] | None = None

    def log(self, component: Component) -> Path:
        return self.root / "logs" / f"{SUFFIXES[component]}.log"

    # --- what the components read

    def accepted(self, note: Note) -> Job | None:
        """The job that runs here; None before the first run. A damaged file is replaced by the trainer's copy."""
        problems = []
        for file in (self.job_file, self.trainers_job_file):
            try:
                if (text := _text(file)) is None:
                    continue
                job, _ = validate_known(Job, json.loads(text))
            except (OSError, ValueError, RecursionError) as error:
                problems.append(f"{file} is damaged ({_first_line(error)})")
                continue
            if problems:
                note(f"{problems[0]}; the trainer's copy {file.name} is used")
            return job
        if problems:
            note(f"{problems[0]}; the job is taken from the job file, unchecked against the run's former one")
        return None

    def has_job(self, text: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return _text(self.job_file) == text
        return False

    def write_job(self, text: str) -> None:
        self._write(self.job_file, text)

    def write_key(self, key: str) -> None:
        self._make(self.key_file.parent, mode=0o700)
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(key)

    def key(self) -> str | None:
        """The job's key; None where there is none that can be used, and a new one is needed."""
        try:
            key = (_text(self.key_file) or "").strip()
        except (OSError, ValueError):
            return None
        return key if key.isascii() and key.isprintable() and key else None

    def mount(self, volume: Manifest) -> Path | None:
        """The folder in place of a volume; None for ``/tmp`` and shared memory, which this machine has already.
        Raises ``OSError`` where it cannot be made."""
        if "configMap" in volume:
            return self._make(self.job_file.parent)
        if "secret" in volume:
            return self._make(self.key_file.parent, mode=0o700)
        match volume["name"]:
            case "cache":
                cache_folder().mkdir(parents=True, exist_ok=True)
                return cache_folder()
            case "run" | "traces":
                return self.root
        return None

    # --- what the executor remembers

    def status(self, note: Note) -> JobStatus:
        """The status as it was last written; a new one where the file is damaged, which is kept under another name."""
        try:
            if (text := _text(self.status_file)) is None:
                return JobStatus()
            status, _ = validate_known(JobStatus, json.loads(text))
            _check_times(status)
            return status
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            kept = self.status_file.with_name("status.json.damaged")
            self.status_file.replace(kept)
            note(
                f"{self.status_file} is damaged ({_first_line(error)}); it is kept as {kept.name}, and a new one is "
                "made: the list of former attempts is lost, training resumes from its last checkpoint"
            )
            return JobStatus()

    def write_status(self, status: JobStatus) -> None:
        self._write(self.status_file, status.model_dump_json(by_alias=True, indent=2) + "\n")

    def mark_alive(self) -> None:
        """Note the time, for a later run that finds this one killed."""
        with contextlib.suppress(OSError):
            os.utime(self.lock_file)

    # --- whose it is

    @contextlib.contextmanager
    def lock(self, note: Note = lambda _: None) -> Iterator[float]:
        """Be the one executor of this folder, for as long as the block runs; yields the time at which a former one was
        last alive (Unix). The lock ends with the process that holds it. Raises :class:`LocalError`.

        Components that a killed executor left behind are killed first: two trainers must not write one folder. A folder
        to which nothing was written, because the job was refused, goes again.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a+", encoding="utf-8", errors="replace") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read(100).strip() or "unknown"
                raise LocalError(f"{self.root} is in use by another visionrl run (pid {holder})") from None
            last_alive = os.fstat(stream.fileno()).st_mtime
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            self._identities = self._identities_now()
            self._end_predecessors(note)
            try:
                yield last_alive
            finally:
                stream.truncate(0)
                if self._identities == self._identities_now() and list(self.root.iterdir()) == [self.lock_file]:
                    shutil.rmtree(self.root)

    def check(self) -> None:
        """Raise :class:`LocalError` where the folder that was locked is not there any more, or is being deleted."""
        if self._identities is not None and self._identities_now() != self._identities:
            raise LocalError(f"{self.root} was deleted or replaced while the job ran; the run has ended")

    def _identities_now(self) -> list[tuple[int, int] | None]:
        return [_identity(self.root), _identity(self.lock_file)]

    def _write(self, file: Path, text: str) -> None:
        self._make(file.parent)
        write_atomically(file, text)

    def _make(self, folder: Path, mode: int = 0o777) -> Path:
        """Make one of the run folder's own folders; the run folder itself, once deleted, is not made again."""
        self.check()
        if folder != self.root:
            folder.mkdir(mode, exist_ok=True)
        return folder

    def _end_predecessors(self, note: Note) -> None:
        while found := processes.left_behind(self.supervisor):
            if alive := processes.kill(found):
                raise LocalError(f"{self.root} is still used by a former run's processes that do not end: {alive}")
            names = ", ".join(sorted(set(found.values())))
            note(f"a former run was killed; its processes have been ended: {len(found)} ({names})")


def cache_folder() -> Path:
    """Models and compiled kernels, shared by all jobs of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionrl"


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, at most 16 KiB of it."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 16384))
            text = stream.read(16384).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _text(file: Path) -> str | None:
    """A file's text; None where it does not exist. Raises ``ValueError`` for one that is no text or far too large."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return data.decode()


def _check_times(status: JobStatus) -> None:
    """Raise ``ValueError`` or ``OverflowError`` for times that cannot be calculated with."""
    times = [time for attempt in status.attempts for time in (attempt.started, attempt.ended)]
    for time in (
        *times,
        *(failure.at for failure in status.failures),
        status.active_since,
        status.completion_time,
        status.progress.eta,
    ):
        if time is not None and moment(time).tzinfo is None:
            raise ValueError(f"a time without its zone: {time}")
    timedelta(seconds=status.active_seconds)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
