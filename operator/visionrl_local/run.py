"""``visionrl run``: observe, decide, apply on this machine until the job is finished."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from visionrl.job import Component, Job
from visionrl.jobfile import JobFileError, load_job
from visionrl.status import JobStatus
from visionrl_core.decide import decide
from visionrl_core.manifests.common import Owner
from visionrl_core.observed import JobObject
from visionrl_local.clock import Clock
from visionrl_local.container import Argv, container_argv
from visionrl_local.folder import LocalError, LocalFolder
from visionrl_local.fresh import start_over
from visionrl_local.gpus import claimed_gpus, visible_gpus
from visionrl_local.machine import LocalMachine
from visionrl_local.pod import Exit
from visionrl_local.ports import reserved_ports
from visionrl_local.resume import after_jump, check_same_job, interrupted, resumed
from visionrl_local.summary import read_summary, show_summary
from visionrl_local.view import choose_view, emit, error, refuse

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
        source = JobSource(options.file)
        folder = LocalFolder(options.runs / source.job.name)
        notes: list[str] = []
        with folder.lock(notes.append) as last_alive:
            if options.fresh and not start_over(folder, error, _agrees):
                error("nothing was deleted")
                return 1
            accepted = folder.accepted(notes.append)
            check_same_job(accepted, source.job)
            former, now = folder.status(notes.append), datetime.now(UTC)
            status = resumed(former, accepted, source.job, now, datetime.fromtimestamp(last_alive, UTC))
            if status is None:
                for note in notes:
                    error(note)
                return _show_end(folder, former, options.as_json, "complete already; --fresh starts over")
            with (
                reserved_ports(options.port) as ports,
                claimed_gpus(source.job.spec, visible_gpus()) as gpus,
            ):
                return asyncio.run(_Execution(options, source, folder, accepted, ports, gpus, notes).run(status))
    except KeyboardInterrupt:
        error("stopped")
        return 128 + signal.SIGINT
    except (LocalError, JobFileError, OSError) as problem:
        refuse(problem)
    return 1


def left_to_a_cluster(job: Job) -> list[str]:
    """What the job asks for and this machine does not do."""
    if job.spec.storage.export is None:
        return []
    return [f"storage.export is for a cluster; here, visionrl fetch {job.name} copies what was trained"]


def _agrees() -> bool:
    """Ask on a terminal; elsewhere ``--fresh`` was said by a program, or by somebody who cannot be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print("delete these and start over? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@dataclass
class _Execution:
    """One execution of the loop *observe, decide, apply*."""

    options: RunOptions
    source: JobSource
    folder: LocalFolder
    accepted: Job | None
    ports: dict[Component, int]
    gpus: dict[Component, str]
    notes: list[str]
    """What there is to say before the loop begins."""

    async def run(self, status: JobStatus) -> int:
        """The exit code of :func:`run`."""
        job, folder = self.source.job, self.folder
        self.view = choose_view(job.name, folder, self.options.as_json)
        self.machine = LocalMachine(
            job.name,
            folder,
            self.ports,
            self.gpus,
            self.options.argv,
            self.accepted,
            self._note_exit,
        )
        self.signals = Signals(on_second=self.machine.kill)
        for note in (*self.notes, *left_to_a_cluster(job)):
            self.view.note(note)
        watch = asyncio.create_task(self.machine.watch())
        try:
            status = await self._reconcile(status)
        except LocalError:
            self.machine.kill()  # the folder is gone: there is nothing to end in order
            raise
        finally:
            watch.cancel()
            if self.signals.received:
                self.view.note("stopping; once more kills")
            await self.machine.close()
            self.view.close()
        if status.finished:
            return _show_end(folder, status, self.options.as_json)
        folder.write_status(interrupted(status, datetime.now(UTC)))
        error(f"stopped; the same command resumes from {folder.root}")
        return 128 + (self.signals.received or signal.SIGTERM)

    async def _reconcile(self, status: JobStatus) -> JobStatus:
        """Observe, decide, apply until the job is finished or a signal arrives; returns the last status. Raises
        :class:`LocalError` where the run folder is gone."""
        machine, view, clock = self.machine, self.view, Clock()
        stopped = asyncio.create_task(self.signals.stop.wait())
        written: JobStatus | None = None
        while not stopped.done():
            self.folder.check()
            self.folder.mark_alive()
            machine.changed.clear()
            self.source.reload(view.note)
            if jump := clock.jump():
                view.note(f"the clock jumped by {jump.total_seconds():+.0f} s; deadlines and back-offs are not changed")
                status = after_jump(status, jump)
            decision = decide(self.source.object(), status, machine.observe(), clock.now())
            if decision.status != status or written is None:
                status = decision.status
                view.status(status)
            if status != written and self._done(self.folder.write_status, status):
                written = status
            if status.finished:
                break
            self._done(machine.repair_files)
            for name in decision.deletions:
                machine.delete(name)
            for manifest in decision.manifests:
                self._done(machine.apply, manifest)
            changed = asyncio.create_task(machine.changed.wait())
            await asyncio.wait({stopped, changed}, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        stopped.cancel()
        return status

    def _done(self, action: Callable[..., None], *arguments: object) -> bool:
        """Do what a full or broken disk may prevent; it is tried again in the next round, and noted once."""
        try:
            action(*arguments)
        except OSError as problem:
            text = f"{problem.filename2 or problem.filename or self.folder.root}: {problem.strerror}; trying again"
            if text not in self.notes:
                self.notes.append(text)
                self.view.note(text)
            return False
        return True

    def _note_exit(self, end: Exit) -> None:
        component = end.launch.component
        if end.code == 0 and component == "trainer":
            return
        text = f"{component} ended: exit code {end.code} ({end.reason}); log: {self.folder.log(component)}"
        self.view.note(text, end.tail)


class JobSource:
    """The job's file, read again when it changes: fields that may change take effect while the job runs."""

    def __init__(self, file: Path) -> None:
        self.job: Job = load_job(file)
        self._file, self._generation = file, 1
        self._seen = self._state()

    def object(self) -> JobObject:
        document = self.job.model_dump(mode="json", by_alias=True)
        return JobObject(self.owner, self._generation, document)

    @property
    def owner(self) -> Owner:
        return Owner(self.job.name, self.job.metadata.namespace or "default", "local")

    def reload(self, note: Callable[[str], None]) -> None:
        """Adopt a change of the file; a change that cannot be used is reported once and ignored."""
        seen = self._state()
        if seen is None or seen == self._seen:
            return
        self._seen = seen
        try:
            job = load_job(self._file)
        except (ValueError, OSError, RecursionError, MemoryError) as problem:
            note(f"the changed job file is not used: {problem}")
            return
        if job.name != self.job.name:
            note(f"the changed job file is not used: metadata.name is {job.name}, this run is {self.job.name}")
        elif job != self.job:
            self.job, self._generation = job, self._generation + 1

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None  # for example between an editor's delete and rename
        return found.st_mtime_ns, found.st_size, found.st_ino


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
