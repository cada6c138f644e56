"""Finds components that hang: what the kernel says of their processes, beside what they answer themselves.

A probe must be patient with a component that is busy: a trainer may not answer for minutes while it computes. A
component that neither answers nor computes hangs, and so does one whose processes are stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from visionrl.vitals import LOOK_SECONDS, Idleness, Vitals

STOPPED_LOOKS, SILENT_LOOKS = 3, 5
STALLED_SECONDS = 50
"""How long a run may have no component that computes while its trainer says that it trains and reports nothing new. A
model that is loaded, a kernel that is compiled, an environment that is simulated compute; pauses between retries are
shorter."""


@dataclass
class Pulse:
    """How long a component has been stopped, silent, idle; in looks."""

    _idleness: Idleness = field(default_factory=Idleness)
    _stopped: int = 0
    _silent: int = 0

    @property
    def idle(self) -> int:
        return self._idleness.looks

    def look(self, vitals: Vitals, silent: bool) -> str:
        """Take in one look; ``silent``: it does not answer, though it has. Why it hangs; empty where it does not."""
        works = self._idleness.look(vitals)
        self._silent = self._silent + 1 if silent and not works else 0
        self._stopped = self._stopped + 1 if vitals.stopped else 0
        if self._stopped >= STOPPED_LOOKS:
            return f"a process of it has been stopped for {STOPPED_LOOKS * LOOK_SECONDS:.0f} s (SIGSTOP)"
        if self._silent >= SILENT_LOOKS:
            return f"neither an answer nor work for {SILENT_LOOKS * LOOK_SECONDS:.0f} s"
        return ""
