"""Jobs on this machine: the run folders of ``visionrl run``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visionrl.documents import DocumentError, parse_json, read_text
from visionrl.durable import write_atomically
from visionrl.job import Component, Job
from visionrl.status import Condition, JobStatus
from visionrl_cli.places.place import (
    CANCELLED,
    METRICS,
    STOPPED,
    Event,
    JobRecord,
    Metrics,
    PlaceError,
    Tail,
    metrics_of,
    read_status,
)
from visionrl_core.clock import stamp
from visionrl_local.folder import MAX_FILE_BYTES, LocalError, LocalFolder
from visionrl_local.folder import tail as last_lines
from visionrl_local.fresh import is_run_folder

EXECUTOR_LOG = "executor.log"

END_SECONDS = 120.0
"""How long a job may take to end all its processes in order."""
LOOK_SECONDS = 0.2


def run_command(file: Path, runs: Path) -> list[str]:
    """``visionrl run`` with this environment's Python."""
    program = "import sys, visionrl_cli; sys.exit(visionrl_cli.main())"
    return [sys.executable, "-c", program, "run", str(file), "--runs", str(runs)]


@dataclass
class Machine:
    """The run folders in one folder."""

    runs: Path
    executor: Callable[[Path, Path], list[str]] = field(default=run_command, repr=False)
    """The command that runs a job file in a folder of run folders."""

    @property
    def title(self) -> str:
        return f"{self.runs}/ on this machine"

    def command(self, words: str) -> str:
        runs = "" if self.runs == Path("runs") else f" --runs {self.runs}"
        return f"visionrl {words}{runs}"

    # --- reading

    def jobs(self) -> list[JobRecord]:
        try:
            folders = sorted(path for path in self.runs.iterdir() if path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PlaceError(f"{self.runs}: {error.strerror}") from None
        return [_record(LocalFolder(path)) for path in folders if is_run_folder(LocalFolder(path))]

    def job(self, name: str) -> JobRecord:
        return _record(self._folder(name))

    def events(self, name: str) -> list[Event]:
        self._folder(name)
        return []

    def logs(self, name: str, component: Component, tail: Tail) -> Iterator[str]:
        folder = self._folder(name)
        if tail.previous:
            raise PlaceError("--previous is for a cluster: on this machine a log holds all starts of its component")
        path = folder.log(component)
        if not path.exists():
            raise PlaceError(f"{path}: no such file; the {component} of {name} has not been started")
        return _file_lines(path, tail, lambda: executor_of(folder) is not None)

    def metrics(self, name: str) -> Metrics:
        path = self._folder(name).root / METRICS
        try:
            with path.open(encoding="utf-8", errors="replace") as stream:
                return metrics_of(stream)
        except FileNotFoundError:
            return Metrics()

    # --- changing

    def submit(self, job: Job) -> None:
        """Start the job in the background; it goes on when this program has ended."""
        folder = LocalFolder(self.runs / job.name)
        if executor_of(folder) is not None:
            raise PlaceError(f"{job.name} runs already: {self.command(f'jobs get {job.name}')}")
        text = job.model_dump_json(by_alias=True, exclude_defaults=True, indent=2) + "\n"
        folder.root.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.submitted_file, text)
        self._start(folder, folder.submitted_file)

    def suspend(self, name: str) -> None:
        self._end(name, "Suspended")

    def resume(self, name: str) -> None:
        folder = self._folder(name)
        if executor_of(folder) is not None:
            raise PlaceError(f"{name} runs already")
        self._start(folder, folder.submitted_file if folder.submitted_file.exists() else folder.job_file)

    def cancel(self, name: str) -> None:
        self._end(name, CANCELLED)

    def _end(self, name: str, reason: str) -> None:
        """End the executor in order, and write into the status that somebody asked for that."""
        folder = self._folder(name)
        if _record(folder).status.finished:
            raise PlaceError(f"{name} has ended already")
        _stop(folder)
        try:
            with folder.lock():
                status = _read(folder)
                if not status.finished:
                    folder.write_status(_suspended(status, reason))
        except (LocalError, OSError) as error:
            raise PlaceError(str(error)) from None

    def _start(self, folder: LocalFolder, file: Path) -> None:
        log = folder.root / "logs" / EXECUTOR_LOG
        log.parent.mkdir(exist_ok=True)
        command = self.executor(file.absolute(), self.runs.absolute())
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        while executor_of(folder) is None:
            if process.poll() is not None:
                if _record(folder).status.finished:
                    return
                raise PlaceError(f"{folder.root.name} did not start: {_last_words(folder) or 'no output'}; log: {log}")
            time.sleep(LOOK_SECONDS)

    def _folder(self, name: str) -> LocalFolder:
        folder = LocalFolder(self.runs / name)
        if name in (".", "..") or "/" in name or not is_run_folder(folder):
            raise PlaceError(
                f"no job {name} in {self.title}; for a job in a cluster: kubectl visionrl, or --context NAME"
            )
        return folder


def executor_of(folder: LocalFolder) -> int | None:
    """The process that executes the job; None where none does."""
    try:
        with folder.lock_file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(100).strip()
            if not text.isdecimal():  # written while the lock is held; a probe would be in the way of who takes it now
                return None
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # left by one that was killed
    except BlockingIOError:
        return int(text)
    except OSError:
        return None


def _stop(folder: LocalFolder) -> None:
    """End the executor and wait for it. Raises :class:`PlaceError`."""
    pid = executor_of(folder)
    if pid is None:
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError) as error:
        raise PlaceError(f"its executor, pid {pid}, cannot be ended: {error.strerror}") from None
    deadline = time.monotonic() + END_SECONDS
    while executor_of(folder) == pid:
        if not time.monotonic() < deadline:
            raise PlaceError(f"its executor, pid {pid}, still ends after {END_SECONDS:.0f} s; try again")
        time.sleep(LOOK_SECONDS)


def _record(folder: LocalFolder) -> JobRecord:
    status, runs = _read(folder), executor_of(folder) is not None
    suspended = status.condition("Suspended")
    phase: str = status.phase
    if not runs and not status.finished:
        asked = suspended is not None and suspended.status == "True"
        phase = (suspended.reason if suspended else "") if asked else STOPPED
        if phase == STOPPED:
            damaged = "" if status.start_time else status.reason
            words = damaged or _last_words(folder) or "stopped with Ctrl-C, or killed"
            status = status.model_copy(update={"reason": words, "components": []})  # none runs
    return JobRecord(
        name=folder.root.name,
        namespace="",
        created=status.start_time or "",
        phase=phase,
        status=status,
        document=_document(folder),
    )


def _last_words(folder: LocalFolder) -> str:
    """Of an executor in the background that ended, or refused to start, after the status was written; else nothing."""
    log = folder.root / "logs" / EXECUTOR_LOG
    try:
        if folder.status_file.exists() and log.stat().st_mtime < folder.status_file.stat().st_mtime:
            return ""
    except OSError:
        return ""
    return " ".join(last_lines(log, 1)).removeprefix("visionrl: ")


def _read(folder: LocalFolder) -> JobStatus:
    try:
        return read_status(parse_json(read_text(folder.status_file, MAX_FILE_BYTES)))
    except FileNotFoundError:
        return JobStatus()
    except (OSError, DocumentError) as error:
        return JobStatus(reason=f"{folder.status_file} cannot be read: {error}")


def _document(folder: LocalFolder) -> dict[str, Any]:
    for file in (folder.job_file, folder.trainers_job_file, folder.submitted_file):
        with contextlib.suppress(OSError, DocumentError):
            found = parse_json(read_text(file, MAX_FILE_BYTES))
            if isinstance(found, dict):
                return found
    return {"metadata": {"name": folder.root.name}, "spec": {}}


def _suspended(status: JobStatus, reason: str) -> JobStatus:
    """The status of a job whose executor was asked to end."""
    condition = Condition(type="Suspended", status="True", reason=reason, last_transition_time=stamp(datetime.now(UTC)))
    others = [each for each in status.conditions if each.type != "Suspended"]
    return status.model_copy(
        update={"phase": "Suspended", "reason": reason.lower(), "conditions": [*others, condition]}
    )


def _file_lines(path: Path, tail: Tail, goes_on: Callable[[], bool]) -> Iterator[str]:
    """The end of a log; with ``follow``, also what is added to it for as long as the job goes on."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            shown: Iterable[str] = stream if tail.lines is None else deque(stream, maxlen=tail.lines)
            yield from (line.rstrip("\n") for line in shown)
            while tail.follow:
                running = goes_on()  # before reading: what is written meanwhile is read in the next round
                yield from (line.rstrip("\n") for line in stream)
                if not running:
                    break
                time.sleep(LOOK_SECONDS)
    except OSError as error:
        raise PlaceError(f"{path}: {error.strerror}") from None
