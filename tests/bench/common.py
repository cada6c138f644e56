"""What the benchmarks share: medians with their spread, processor time, memory, the machine's name, a JSON file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median; of fewer than four values, their whole range."""
    if len(values) < 4:
        return (max(values) - min(values)) / statistics.median(values)
    first, _, third = statistics.quantiles(values, n=4)
    return (third - first) / statistics.median(values)


def interleaved(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    prepare: Callable[[str], Any] = lambda side: None,
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after a round of warming up. All sides take their turn in every round, in
    alternating order, so that what else the machine does hits all of them. ``prepare`` is called before a side's turn,
    which it does not count in."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(-1, rounds):
        for name in sides if round_ % 2 else reversed(list(sides)):
            prepare(name)
            began = clock()
            sides[name]()
            if round_ >= 0:
                seconds[name].append(clock() - began)
    return seconds


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it was."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def memory_mib(field: str, pid: int | str = "self") -> float:
    """A line of ``/proc/PID/status``: ``VmRSS``, or ``VmHWM`` for the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Begin a new peak of this process's resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def process_group_seconds(group: int) -> float:
    """Processor time of a process group. On a busy machine it says more than the clock."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # from the state on; pgrp, utime, stime as in proc(5)
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def write(file: Path | None, bench: str, result: Mapping[str, Any]) -> None:
    """Write a benchmark's result, and the machine, as JSON."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"bench": bench, "machine": machine(), **result}, indent=2) + "\n")
