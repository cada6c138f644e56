"""Runs one command as a container runtime does, so that no process of it is ever left behind.

``guard.py GRACE COMMAND...`` starts the command in a session of its own and ends with its exit code (128 + n after
signal n). Processes that outlive the command are killed with it, as in a container whose first process ends:
descendants that lose their parent become children of this process (it is their subreaper), which kills them.

Standard input is the leash: when it closes, because the process at its other end closed it or was killed, the command
gets SIGTERM, and SIGKILL after GRACE seconds. SIGTERM to this process kills at once. Only the standard library is used,
and none of the site's packages, so that this starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    grace, command = float(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    kill_now = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: kill_now.append(True))

    guard, child = os.getpid(), os.fork()
    if child == 0:
        _become(command, libc, guard)
    watched, deadline = [woken, sys.stdin.fileno()], None
    while (status := _reap(child)) is None:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(watched, [], [], timeout)
        if woken in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        if sys.stdin.fileno() in readable and not os.read(sys.stdin.fileno(), 4096):
            watched.remove(sys.stdin.fileno())
            deadline = time.monotonic() + grace
            os.kill(child, signal.SIGTERM)
        if kill_now or (deadline is not None and time.monotonic() >= deadline):
            os.kill(child, signal.SIGKILL)
    _kill_the_rest()
    return status if status >= 0 else 128 - status


def _become(command: list[str], libc: ctypes.CDLL, guard: int) -> None:
    """In the child: a session of its own, no input, killed when the guard is killed; then the command."""
    try:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:  # killed before the line above took effect
            return
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _reap(child: int) -> int | None:
    """Reap every child that has ended; the child's status as ``subprocess`` gives it (negative: signal)."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)


def _kill_the_rest() -> None:
    """Kill the children of this process; each death may bring further descendants."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    mine, found = os.getpid(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name) state ppid …; the name may hold spaces and parentheses.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[1]) == mine:
                    found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
