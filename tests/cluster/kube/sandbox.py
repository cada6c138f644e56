"""The namespaces that a cluster lives in, and how to start and stop processes there.

Namespaces rather than a list of pids: the kernel ends every process of the sandbox with its first one, and with
the last process go the mounts, the network and its rules. A crashed run leaves nothing else to find.
"""

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .host import KubeError, run, wait_until
from .layout import Cluster

INIT = Path(__file__).with_name("init.py")
GONE = (FileNotFoundError, ProcessLookupError)
"""What reading of a process, or signalling it, raises after its end; the second one where it ends meanwhile."""


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox. pid: of its first process, as the host counts."""

    pid: int
    logs: Path

    @classmethod
    def start(cls, cluster: Cluster) -> "Sandbox":
        """Makes the namespaces and joins them to the host by one network link."""
        _refuse_taken_addresses(cluster)
        pid_file = cluster.root / "init.pid"
        (cluster.root / "log").mkdir()
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--net", "--ipc"]
        with (cluster.root / "log" / "init.log").open("wb") as log:
            parent = subprocess.Popen(
                ["unshare", *namespaces, sys.executable, INIT, cluster.root],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until(lambda: pid_file.exists() or parent.poll() is not None, "the sandbox", 10, 0.01)
            if not pid_file.exists():
                raise KubeError(f"the sandbox did not start: {Path(log.name).read_text().strip()}")
            sandbox = cls(int(pid_file.read_text()), cluster.root / "log")
            sandbox._connect(cluster)
        except BaseException:
            parent.kill()
            raise
        return sandbox

    @classmethod
    def find(cls, cluster: Cluster) -> "Sandbox | None":
        """The sandbox that runs from the cluster's folder, if one does."""
        with contextlib.suppress(*GONE):
            pid = int((cluster.root / "init.pid").read_text())
            # The number may be another process's by now: ours has this folder as its last argument.
            if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(b"\0" + os.fsencode(cluster.root)):
                return cls(pid, cluster.root / "log")
        return None

    def _connect(self, cluster: Cluster) -> None:
        link, prefix = cluster.link, "30"
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid)])
        run(["ip", "address", "add", f"{cluster.host_address}/{prefix}", "dev", link])
        run(["ip", "link", "set", link, "up"])
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{cluster.node_address}/{prefix}", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", str(cluster.host_address))
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for network in (cluster.pods, cluster.services):
            run(["ip", "route", "add", str(network), "via", str(cluster.node_address)])

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--net", "--ipc", "--"]

    def run(self, *command: str | Path) -> str:
        """Runs a command inside, to its end."""
        return run([*self._enter(), *command])

    def spawn(self, name: str, *command: str | Path, env: dict[str, str] | None = None) -> "Process":
        """Starts a process inside; what it prints goes to log/NAME.log."""
        path = self.logs / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [*self._enter(), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**os.environ, **(env or {})},
            )  # fmt: skip
        return Process(name, process, path)

    def stop(self) -> None:
        """Ends every process inside and waits until they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not _alive(self.pid), "the end of the sandbox's processes", 60, 0.02)


@dataclass(frozen=True)
class Process:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Waits until ready() holds; when the process ends first or time runs out, shows its last lines."""
        try:
            wait_until(lambda: self.process.poll() is not None or ready(), what, timeout_s)
        except KubeError as error:
            raise KubeError(f"{error}\n{self.last_lines()}") from None
        if self.process.poll() is not None:
            raise KubeError(f"{self.name} ended while waiting for {what}:\n{self.last_lines()}")

    def last_lines(self, count: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def stop(self) -> None:
        """Ends this one process (a signal to nsenter would not reach the one inside)."""
        with contextlib.suppress(*GONE):
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
        self.process.wait(timeout=30)


def _alive(pid: int) -> bool:
    """False for a zombie too: the kernel lets a first process become one only after all others have ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except GONE:
        return False
    return state != "Z"


def _refuse_taken_addresses(cluster: Cluster) -> None:
    for route in json.loads(run(["ip", "-json", "-4", "route"])):
        if route["dst"] != "default" and ipaddress.ip_network(route["dst"]).overlaps(cluster.network):
            raise KubeError(
                f"{cluster.network} is taken on this machine ({route['dst']} dev {route['dev']}): "
                "give another --cidr and, for a second cluster, another --name"
            )
