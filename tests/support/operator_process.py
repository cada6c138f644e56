"""The operator as a process of its own, for tests that watch it, kill it and start it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx


@dataclass
class Operator:
    """A running operator process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @classmethod
    @contextmanager
    def start(
        cls, kubeconfig: Path, port: int, arguments: Sequence[str] = (), **environment: str
    ) -> Iterator[Operator]:
        """Start it; it is ended by its pid afterwards."""
        # The cluster is on this machine: never through a proxy.
        settings = {"KUBECONFIG": str(kubeconfig), "NO_PROXY": "*", "no_proxy": "*", **environment}
        command = [sys.executable, "-m", "visionrl_operator", "run"]
        command += ["--health-host", "127.0.0.1", "--health-port", str(port), *arguments]
        with TemporaryDirectory() as folder:
            log = Path(folder) / "operator.log"
            with log.open("wb") as output:
                process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=output, stderr=output)
            operator = cls(process, port, log)
            try:
                yield operator
            finally:
                if process.poll() is None:
                    operator.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """As a node failure would."""
        self.process.kill()
        self.process.wait()

    def stop(self, limit_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def get(self, path: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.get(f"http://127.0.0.1:{self.port}{path}")

    def state(self) -> str:
        """What ``/readyz`` says; empty while nobody answers."""
        try:
            return self.get("/readyz").text.strip()
        except httpx.HTTPError:
            return ""

    def wait_ready(self, limit_s: float = 60) -> None:
        """Until it leads and knows everything."""
        self.wait_for_state("leading", limit_s)

    def wait_for_state(self, state: str, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while self.state() != state:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the operator is not {state!r} but {self.state()!r}:\n{self.tail()}")
            time.sleep(0.05)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
