"""Ctrl-C while packages are imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

STOPPED = "\nvisionrl: stopped"
EXIT_INTERRUPTED = 128 + signal.SIGINT


class AtOnce:
    """Within the block, Ctrl-C ends the program at once.

    For imports: nothing is to be cleaned up there, and a KeyboardInterrupt in the middle of one becomes an ImportError,
    or a message of a library in another language.
    """

    def __enter__(self) -> None:
        # Only in place of Python's own handler: who has set another one knows what to do.
        self._replaced = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._replaced:
            try:
                signal.signal(signal.SIGINT, _end)
            except ValueError:  # not in the main thread, which alone gets the signal
                self._replaced = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._replaced:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{STOPPED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
