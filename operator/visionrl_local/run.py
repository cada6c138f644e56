"""``visionrl run``: observe, decide, apply on this machine until the job is finished."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from visionrl.job import Job
from visionrl.jobfile import JobFileError, load_job
from visionrl.status import JobStatus
from visionrl_core.attempts import live, next_attempt
from visionrl_core.decide import decide
from visionrl_core.manifests.common import Owner
from visionrl_core.observed import JobObject
from visionrl_core.policies.failure import INTERRUPTED
from visionrl_local.container import Argv, choose_ports, container_argv
from visionrl_local.folder import LocalError, LocalFolder
from visionrl_local.gpus import assign_gpus, visible_gpus
from visionrl_local.machine import LocalMachine
from visionrl_local.pod import Exit
from visionrl_local.resume import check_same_job, resumed
from visionrl_local.summary import read_summary, show_summary
from visionrl_local.view import View, choose_view, emit, error

TICK_SECONDS = 1.0


@dataclass(frozen=True)
class RunOptions:
    """What the user asked for."""

    file: Path
    runs: Path = Path("runs")
    """Folder of the run folders."""
    port: int | None = None
    """First of three consecutive ports; None takes free ones."""
    fresh: bool = False
    """Forget an earlier run."""
    as_json: bool = False
    argv: Argv = container_argv
    """The command line of a container."""


def run(options: RunOptions) -> int:
    """Run a job to its end. Exit code: 0 complete, 1 failed or refused, 128 + n after signal n."""
    try:
        return asyncio.run(_run(options))
    except (LocalError, JobFileError) as problem:
        error(str(problem))
    except OSError as problem:
        error(f"{problem.filename}: {problem.strerror}" if problem.filename else str(problem))
    return 1


async def _run(options: RunOptions) -> int:
    source = JobSource(options.file)
    folder = LocalFolder(options.runs / source.job.name)
    with folder.lock():
        if options.fresh:
            folder.clear()
        accepted = folder.accepted()
        check_same_job(accepted, source.job)
        status = resumed(folder.status(), accepted, source.job, datetime.now(UTC))
        if status is None:
            return _show_end(folder, folder.status(), options.as_json, "complete already; --fresh starts over")
        gpus = assign_gpus(source.job.spec, visible_gpus())
        ports = choose_ports(options.port)
        view = choose_view(source.job.name, folder, options.as_json)
        machine = LocalMachine(
            source.job.name, folder, ports, gpus, options.argv, lambda end: _note_exit(view, folder, end)
        )
        signals = Signals(on_second=machine.kill)
        report_poller = asyncio.create_task(_poll_report(machine))
        try:
            status = await _reconcile(source, folder, machine, view, signals, status)
        finally:
            report_poller.cancel()
            if signals.received:
                view.note("stopping; once more kills")
            await machine.close()
            view.close()
        if not status.finished and live(status):
            folder.write_status(next_attempt(status, INTERRUPTED, False, datetime.now(UTC)))
    if not status.finished:
        error(f"stopped; the same command resumes from {folder.root}")
        return 128 + (signals.received or signal.SIGTERM)
    return _show_end(folder, status, options.as_json)


async def _reconcile(
    source: JobSource, folder: LocalFolder, machine: LocalMachine, view: View, signals: Signals, status: JobStatus
) -> JobStatus:
    """Observe, decide, apply until the job is finished or a signal arrives; returns the last status."""
    stopped = asyncio.create_task(signals.stop.wait())
    while not stopped.done():
        machine.changed.clear()
        source.reload(view.note)
        decision = decide(source.object(), status, machine.observe(), datetime.now(UTC))
        if decision.status != status:
            status = decision.status
            folder.write_status(status)
            view.status(status)
        if status.finished:
            break
        for name in decision.deletions:
            machine.delete(name)
        for manifest in decision.manifests:
            machine.apply(manifest)
        changed = asyncio.create_task(machine.changed.wait())
        await asyncio.wait({stopped, changed}, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
    stopped.cancel()
    return status


class JobSource:
    """The job's file, read again when it changes: fields that may change take effect while the job runs."""

    def __init__(self, file: Path) -> None:
        self.job: Job = load_job(file)
        self._file, self._generation = file, 1
        self._seen = self._changed_at()

    def object(self) -> JobObject:
        document = self.job.model_dump(mode="json", by_alias=True)
        owner = Owner(self.job.name, self.job.metadata.namespace or "default", "local")
        return JobObject(owner, self._generation, document)

    def reload(self, note: Callable[[str], None]) -> None:
        """Adopt a change of the file; a change that cannot be used is reported once and ignored."""
        changed_at = self._changed_at()
        if changed_at is None or changed_at == self._seen:
            return
        self._seen = changed_at
        try:
            job = load_job(self._file)
        except (JobFileError, OSError) as problem:
            note(f"the changed job file is not used: {problem}")
            return
        if job.name != self.job.name:
            note(f"the changed job file is not used: metadata.name is {job.name}, this run is {self.job.name}")
        elif job != self.job:
            self.job, self._generation = job, self._generation + 1

    def _changed_at(self) -> int | None:
        try:
            return self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return None  # between an editor's delete and rename


class Signals:
    """SIGINT, SIGTERM and SIGHUP: the first one stops the run in order, the second one at once."""

    def __init__(self, on_second: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self.received: int | None = None
        self._on_second = on_second
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: int) -> None:
        if self.received is not None:
            self._on_second()
        self.received = self.received or number
        self.stop.set()


async def _poll_report(machine: LocalMachine) -> None:
    while True:
        await machine.poll_report()
        await asyncio.sleep(TICK_SECONDS)


def _note_exit(view: View, folder: LocalFolder, end: Exit) -> None:
    component = end.launch.component
    if end.code == 0 and component == "trainer":
        return
    view.note(f"{component} ended: exit code {end.code} ({end.reason}); log: {folder.log(component)}", end.tail)


def _show_end(folder: LocalFolder, status: JobStatus, as_json: bool, note: str = "") -> int:
    summary = read_summary(folder)
    complete = status.phase == "Complete"
    if as_json:
        emit("end", phase=status.phase, reason=status.reason, summary=summary, runFolder=str(folder.root))
    else:
        if complete and summary is not None:
            show_summary(summary, folder)
        print(note or f"{status.phase.lower()}: {status.reason}")
        if not complete:
            print(f"logs: {folder.root / 'logs'}")
    return 0 if complete else 1
