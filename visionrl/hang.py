"""Ends a component that hangs, so that whoever runs it starts it again.

A probe sees that a component answers, not that it works: a server whose engine is deadlocked answers every probe. So a
thread of each component looks at its own processes. Where they have work and none of them has used a core or a disk for
:data:`HANG_SECONDS`, the stacks of all threads go to the log, and the process ends. So it does where its event loop has
not turned for that time and this process has computed nothing, whatever the others do: several API servers of one
component work beside each other.

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
from visionrl.vitals import LOOK_SECONDS, Idleness, Vitals, name_looking_thread, session, vitals

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


def end_process() -> None:
    """End this process at once, with the exit code of one that hangs."""
    os._exit(EXIT_HUNG)


def watch(
    loop: asyncio.AbstractEventLoop,
    has_work: Callable[[], bool] = lambda: False,
    end: Callable[[], None] = end_process,
) -> None:
    """Watch this process and its session's others, until the loop is closed. ``has_work`` is called in the
    watching thread: whether something is to be computed, not only waited for. ``end`` ends the component."""
    threading.Thread(target=_watch, args=(loop, has_work, end), name="hang", daemon=True).start()


def _watch(loop: asyncio.AbstractEventLoop, has_work: Callable[[], bool], end: Callable[[], None]) -> None:
    work, loop_stands, turned, pause = Hang(), Hang(), threading.Event(), threading.Event()
    turned.set()
    name_looking_thread()
    while not pause.wait(LOOK_SECONDS) and not loop.is_closed():
        turns = turned.is_set()
        hangs = work.look(vitals(session()), has_work()), loop_stands.look(vitals([os.getpid()]), not turns)
        if any(hangs):
            _log_stacks()
            end()
        if turns:  # asked after the look, which would see the loop's thread run
            turned.clear()
            with contextlib.suppress(RuntimeError):  # it was closed in between
                loop.call_soon_threadsafe(turned.set)


def _log_stacks() -> None:
    # Apart, and for a limited time: a log that nobody reads blocks whoever writes to it, and may be what hangs.
    writing = threading.Thread(target=_write_stacks, name="stacks", daemon=True)
    writing.start()
    writing.join(LOG_SECONDS)


def _write_stacks() -> None:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    # Past sys.stderr, whose lock may be held by the thread that hangs.
    with open(sys.stderr.fileno(), "w", encoding="utf-8", errors="replace", closefd=False) as log:
        for ident, frame in sys._current_frames().items():
            log.writelines([f"Thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)])
        # The last line of its log is what the job's status shows.
        log.write(f"hangs: has work, and has not computed for {HANG_SECONDS} s\n")
