"""What processes do at one moment, from the kernel: whether they compute, and whether they are stopped."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 5.0
"""Time between two looks. Times are counted in looks, so that the sleep of the machine, or a stop of this process,
counts for nobody."""
IDLE_SHARE = 0.05
"""Of one core: processes that use less do not compute. Answering probes takes less than a tenth of this."""
SAMPLES, SAMPLE_SECONDS = 3, 0.05
"""How often threads are looked at for one look, and the time in between: what waits for a core or a disk is seen each
time, and a timer that happens to run is not."""
LOOKING = "visionrl-looks"
"""Name of the threads that look; at most 15 characters."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Vitals:
    """The state of a component's processes at one moment."""

    cpu_seconds: float
    """CPU time used so far."""
    stopped: bool
    """A process is stopped (SIGSTOP)."""
    active: bool
    """In each of :data:`SAMPLES`, a thread runs, or waits for a core or a disk."""


@dataclass
class Idleness:
    """For how long processes have not computed."""

    looks: int = 0
    _cpu_seconds: float = 0.0

    def look(self, vitals: Vitals) -> bool:
        """Take in one look; whether they compute."""
        # A sum that falls has lost a process: something happened.
        used, self._cpu_seconds = abs(vitals.cpu_seconds - self._cpu_seconds), vitals.cpu_seconds
        works = used >= IDLE_SHARE * LOOK_SECONDS or vitals.active
        self.looks = 0 if works else self.looks + 1
        return works


def name_looking_thread() -> None:
    """Leave this thread out of everybody's looks. Several processes of a component have one, and those that look at the
    same moment would see each other run."""
    with contextlib.suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(LOOKING)


def vitals(pids: Iterable[int]) -> Vitals:
    """The state of all these processes, without their threads that look themselves."""
    folders = [Path(f"/proc/{pid}") for pid in pids]
    states = [state for folder in folders if (state := _state(folder)) is not None]
    return Vitals(
        cpu_seconds=sum(state.ticks for state in states) / _TICKS_PER_SECOND,
        stopped=any(state.letter == "T" for state in states),
        active=all(_has_active_thread(folders, sample) for sample in range(SAMPLES)),
    )


def session() -> list[int]:
    """The processes of this process's session (setsid(2)): in a container, those that its first process has started."""
    mine = os.getsid(0)
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if (state := _state(Path(f"/proc/{pid}"))) is not None and state.session == mine]


@dataclass(frozen=True)
class _State:
    name: str
    letter: str
    session: int
    ticks: int
    """Of the CPU, those of ended children included."""


def _has_active_thread(folders: list[Path], sample: int) -> bool:
    if sample:
        time.sleep(SAMPLE_SECONDS)
    return any(state.letter in ("R", "D") for folder in folders for state in _threads(folder))


def _threads(folder: Path) -> Iterator[_State]:
    with contextlib.suppress(OSError):
        for thread in (folder / "task").iterdir():
            looks = thread.name == str(threading.get_native_id())  # also where it could not be named
            if not looks and (state := _state(thread)) is not None and state.name != LOOKING:
                yield state


def _state(folder: Path) -> _State | None:
    """proc_pid_stat(5)."""
    with contextlib.suppress(OSError):
        # pid (name) state ppid pgrp session …; the name may hold spaces and parentheses.
        head, _, rest = (folder / "stat").read_text(errors="replace").rpartition(")")
        fields = rest.split()
        return _State(head.partition("(")[2], fields[0], int(fields[3]), sum(int(ticks) for ticks in fields[11:15]))
    return None
