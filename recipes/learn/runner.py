"""Carrying steps out: each leaves a record, and one that is done is not done again."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recipes.learn.plan import Step
from visionrl.durable import write_atomically

Record = dict[str, Any]
"""``step``, ``command``, ``attempts`` (``began``, ``seconds``, ``cpu_seconds``, ``exit_code``) and ``result``, which is
null until the step is done."""


class StepFailed(Exception):
    """A command ended with an error; the message is for the user."""


def read_record(file: Path) -> Record | None:
    """What a step left; None before its first attempt."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def is_done(file: Path) -> bool:
    record = read_record(file)
    return record is not None and record["result"] is not None


def carry_out(steps: Sequence[Step], record_of: Callable[[str], Path], note: Callable[[str], None]) -> None:
    """Do what is not done yet, in order. Raises :class:`StepFailed` for the first that fails."""
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.name}: {step.about}"
        if is_done(record_of(step.name)):
            note(f"{title} (done)")
            continue
        note(title)
        record = attempt(step, record_of(step.name))
        last = record["attempts"][-1]
        note(f"    {last['seconds']:.0f} s, {last['cpu_seconds']:.0f} s of processor time")
        if last["exit_code"] != 0:
            raise StepFailed(
                f"{step.name} ended with exit code {last['exit_code']}; the same command continues from here"
            )


def attempt(step: Step, file: Path) -> Record:
    """Run the step's command once and write its record. An interrupted attempt is kept too: what it cost counts."""
    step.prepare()
    earlier, command = read_record(file), step.command()
    began, started, cpu = datetime.now(UTC), time.monotonic(), _cpu_seconds()
    code = _run(command)
    this = {
        "began": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(_cpu_seconds() - cpu, 1),
        "exit_code": code,
    }
    record = {
        "step": step.name,
        "command": [Path(command[0]).name, *command[1:]],
        "attempts": [*(earlier["attempts"] if earlier else []), this],
        "result": step.result() if code == 0 else None,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1) + "\n")
    return record


def _run(command: list[str]) -> int:
    with subprocess.Popen(command) as process, _signals_are_for(process):
        return process.wait()


@contextmanager
def _signals_are_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The command ends in its own order, then this does. Ctrl-C reaches it by itself: it is of the same terminal."""
    handlers = {
        signal.SIGINT: lambda *_: None,
        signal.SIGTERM: lambda *_: process.terminate(),
    }
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _cpu_seconds() -> float:
    """Processor time of all commands that have ended, with the processes that they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
