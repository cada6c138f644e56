"""Ends a component that hangs, so that whoever runs it starts it again.

A probe sees that a component answers, not that it works: a server whose engine is deadlocked answers every probe. So a
thread of each component looks at its own processes. Where they have work, or their event loop does not turn, and none
of them has used a core or a disk for :data:`HANG_SECONDS`, the stacks of all threads go to the log, and the process
ends.

Not found: a process that spins while it waits, as for a GPU that hangs. ``lifecycle.progressDeadlineSeconds`` is for
that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from visionrl.component import EXIT_HUNG
from visionrl.vitals import LOOK_SECONDS, Idleness, Vitals, session, vitals

HANG_SECONDS = 40
"""What loads a model, compiles a kernel or simulates an environment computes; pauses between retries are shorter."""

LOG_SECONDS = 10
"""In which the stacks are written, or not."""


@dataclass
class Hang:
    """What a component's watch has seen; one look each :data:`visionrl.vitals.LOOK_SECONDS`."""

    _idleness: Idleness = field(default_factory=Idleness)
    _looks: int = 0

    def look(self, seen: Vitals, waited_for: bool) -> bool:
        """Take in one look; ``waited_for``: it has work, or does not react. Whether it hangs."""
        computes = self._idleness.look(seen)
        self._looks = 0 if computes or not waited_for else self._looks + 1
        return self._looks * LOOK_SECONDS >= HANG_SECONDS


def watch(loop: asyncio.AbstractEventLoop, has_work: Callable[[], bool] = lambda: False) -> None:
    """Watch this process and those that it starts from now on, until the loop is closed. ``has_work`` is called in the
    watching thread: whether something is to be computed, not only waited for."""
    threading.Thread(target=_watch, args=(loop, has_work), name="hang", daemon=True).start()


def _watch(loop: asyncio.AbstractEventLoop, has_work: Callable[[], bool]) -> None:
    hang, turned, pause = Hang(), threading.Event(), threading.Event()
    turned.set()
    while not pause.wait(LOOK_SECONDS) and not loop.is_closed():
        turns = turned.is_set()
        if turns:
            turned.clear()
            with contextlib.suppress(RuntimeError):  # it was closed in between
                loop.call_soon_threadsafe(turned.set)
        if hang.look(vitals(session()), has_work() or not turns):
            _end()


def _end() -> None:
    # Apart, and for a limited time: a log that nobody reads blocks whoever writes to it, and may be what hangs.
    writing = threading.Thread(target=_write_stacks, name="stacks", daemon=True)
    writing.start()
    writing.join(LOG_SECONDS)
    os._exit(EXIT_HUNG)


def _write_stacks() -> None:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    # Past sys.stderr, whose lock may be held by the thread that hangs.
    with open(sys.stderr.fileno(), "w", encoding="utf-8", errors="replace", closefd=False) as log:
        for ident, frame in sys._current_frames().items():
            log.writelines([f"Thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)])
        # The last line of its log is what the job's status shows.
        log.write(f"hangs: has work, and has not computed for {HANG_SECONDS} s\n")
