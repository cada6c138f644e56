"""Runs of stand-in components in processes of their own, and a check that no process is left."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.jobs import document

MARK = "VISIONRL_TEST_MARK"
PATIENCE_SECONDS = 60.0

Event = dict[str, Any]


class Run:
    """One ``visionrl run``, its events, and all processes that descend from it."""

    def __init__(self, folder: Path, file: Path, words: tuple[str, ...]) -> None:
        self.root, self.mark = folder / "demo", uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.local_run", str(file), str(folder), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, MARK: self.mark},
        )
        self.lines: list[str] = []
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """The next event for which this holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            event = self._events.get(timeout=max(0.1, end - time.monotonic()))
            assert event is not None, f"ended without the event; output: {self.lines}"
            if wanted(event):
                return event

    def wait_for_phase(self, phase: str) -> Event:
        return self.wait_for(lambda event: event["event"] == "status" and event["status"]["phase"] == phase)

    def end(self) -> tuple[int, str]:
        """Exit code and what went to standard error."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def processes(self) -> list[int]:
        """Every living process that descends from this run, the run included."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if needle in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def component(self, name: str) -> int:
        """The process of a component."""
        return next(pid for pid in self.processes() if _is_component(pid, name) and b"standin.py" in _command(pid))

    def guard(self, name: str) -> int:
        """The guard of a component's process."""
        return next(pid for pid in self.processes() if _is_component(pid, name) and b"guard.py" in _command(pid))

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"not within {PATIENCE_SECONDS:.0f} s: {what}; output: {self.lines}"
            time.sleep(0.05)

    def wait_until_gone(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while self.processes():
            assert time.monotonic() < end, f"still there: {self.processes()}"
            time.sleep(0.05)

    def status(self) -> dict[str, Any]:
        return json.loads((self.root / "status.json").read_text())

    def clean_up(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            with contextlib.suppress(ValueError):
                self._events.put(json.loads(line))
        self._events.put(None)


def _is_component(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return (
            re.search(rf"\0VISIONRL_LOCAL_PROCESS=\w+ {name} ".encode(), Path(f"/proc/{pid}/environ").read_bytes())
            is not None
        )
    return False


def _command(pid: int) -> bytes:
    """The first words of the command line: the interpreter, its options and the program."""
    with contextlib.suppress(OSError):
        return b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:4])
    return b""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a run: ``start({changes of the spec}, "trainer=train:0", …)``."""
    runs: list[Run] = []

    def start(changes: dict[str, Any], *words: str) -> Run:
        file = write_job(tmp_path / "job.yaml", changes)
        runs.append(Run(tmp_path / "runs", file, words))
        return runs[-1]

    yield start
    for run in runs:
        run.clean_up()


def write_job(file: Path, changes: dict[str, Any]) -> Path:
    with file.open("w") as stream:
        YAML().dump(document({"failurePolicy.backoffSeconds": 0.1, **changes}), stream)
    return file
