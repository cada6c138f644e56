"""Finds components that hang: what the kernel says of their processes, beside what they answer themselves.

A probe must be patient with a component that is busy: a trainer may not answer for minutes while it computes. A
component that neither answers nor computes hangs, and so does one whose processes are stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

from visionrl_local.processes import Vitals

LOOK_SECONDS = 5.0
"""Time between two looks. Times are counted in looks, so that the sleep of the machine, or a stop of this process,
counts for nobody."""
STOPPED_LOOKS, SILENT_LOOKS = 3, 5
STALLED_SECONDS = 50
"""How long a run may have no component that computes while its trainer says that it trains and reports nothing new. A
model that is loaded, a kernel that is compiled, an environment that is simulated compute; pauses between retries are
shorter."""
IDLE_SHARE = 0.05
"""Of one core: a component that uses less does not compute. Answering probes takes less than a tenth of this."""


@dataclass
class Pulse:
    """How long a component has been stopped, silent, idle; in looks."""

    idle: int = 0
    _stopped: int = 0
    _silent: int = 0
    _cpu_seconds: float = 0.0

    def look(self, vitals: Vitals, silent: bool) -> str:
        """Take in one look; ``silent``: it does not answer, though it has. Why it hangs; empty where it does not."""
        # A sum that falls has lost a process: something happened.
        used, self._cpu_seconds = abs(vitals.cpu_seconds - self._cpu_seconds), vitals.cpu_seconds
        works = used >= IDLE_SHARE * LOOK_SECONDS or vitals.active
        self.idle = 0 if works else self.idle + 1
        self._silent = self._silent + 1 if silent and not works else 0
        self._stopped = self._stopped + 1 if vitals.stopped else 0
        if self._stopped >= STOPPED_LOOKS:
            return f"a process of it has been stopped for {STOPPED_LOOKS * LOOK_SECONDS:.0f} s (SIGSTOP)"
        if self._silent >= SILENT_LOOKS:
            return f"neither an answer nor work for {SILENT_LOOKS * LOOK_SECONDS:.0f} s"
        return ""
