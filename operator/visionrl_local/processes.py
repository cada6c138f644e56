"""Finds and kills the processes of a run, also those whose parent is gone.

Every process of a run carries a mark in its environment, which its descendants inherit. So the processes that a killed
supervisor or guard left behind are found without a file of process ids, which could be stale and name a stranger.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARK = "VISIONRL_LOCAL_PROCESS"
# A program that renames itself (vLLM's engine does) must not overwrite its environment: setproctitle's own variable.
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
END_SECONDS = 10.0
"""How long killed processes may take to end; one that waits for a dead disk takes longer."""


@dataclass(frozen=True)
class Supervisor:
    """One executor of one run folder."""

    root: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    """Tells its processes from those of another executor of the same folder, before or after it."""

    def mark(self, component: str) -> str:
        """The value of :data:`MARK` of a component's processes."""
        return f"{self.token} {component} {self.root}"


def left_behind(supervisor: Supervisor) -> dict[int, str]:
    """Process ids and components of the processes that former supervisors of this run folder left."""
    found = {}
    for pid, mark in _marked():
        token, component, root = mark.split(" ", 2)
        if root == str(supervisor.root) and token != supervisor.token:
            found[pid] = component
    return found


def processes_with(mark: str) -> list[int]:
    """Process ids of one component, its guard included."""
    return [pid for pid, found in _marked() if found == mark]


def kill(pids: dict[int, str] | list[int]) -> list[int]:
    """Kill marked processes and wait for their end; returns those that did not end within :data:`END_SECONDS`."""
    deadline, left = time.monotonic() + END_SECONDS, []
    with contextlib.ExitStack() as stack:
        handles: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                stack.callback(os.close, handle)
                # Looked at again behind the handle: the id may belong to another process by now.
                if _mark_of(pid) is not None:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    handles[pid] = handle
        for pid, handle in handles.items():
            ended, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            left += [] if ended else [pid]
    return left


def _marked() -> Iterator[tuple[int, str]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (mark := _mark_of(int(entry.name))) is not None:
            yield int(entry.name), mark


def _mark_of(pid: int) -> str | None:
    prefix = f"{MARK}=".encode()
    with contextlib.suppress(OSError):  # another user's, or gone
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(prefix):
                mark = os.fsdecode(variable.removeprefix(prefix))
                return mark if mark.count(" ") >= 2 else None
    return None
