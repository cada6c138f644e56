"""The operator on a real API server without a node: what its benchmarks share."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench.common import write
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube.layout import Cluster
from tests.support.jobs import document
from tests.support.operator_process import Operator
from visionrl_core.crd import crd
from visionrl_core.kinds import JOB
from visionrl_operator.api import Api, KubernetesTransport

NAMESPACE = "bench"
SERVERS = ("kube-apiserver", "etcd", "kube-controller", "kube-scheduler")
"""Names of their processes; the kernel keeps the first 15 letters."""
READ_SECONDS = 60.0


@dataclass
class Results:
    """Figures of a number of jobs."""

    jobs: int
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])


R = TypeVar("R", bound=Results)


def arguments(name: str, description: str | None, limit_s: float) -> argparse.ArgumentParser:
    """Those that every one of the benchmarks has."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{name}", description=description)
    parser.add_argument("--jobs", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--workers", type=int, default=16, help="of the operator (default: 16)")
    parser.add_argument("--limit", type=float, default=limit_s, help=f"give up after so many seconds ({limit_s:g})")
    parser.add_argument("--name", default="opbench", help="of the cluster that is brought up")
    parser.add_argument("--cidr", default="10.203.0.0/16", help="its network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    return parser


def measured(
    options: argparse.Namespace, bench: str, measure: Callable[[argparse.Namespace, Path], Coroutine[Any, Any, R]]
) -> R:
    """What is measured on a cluster without nodes that is brought up for it and taken down in any case."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster.of(options.name, options.cidr)
    try:
        kube = kube_cluster.up(cluster, control_plane_only=True)
        kube.kubectl.define(crd(cel=False))
        kube.kubectl("create", "namespace", NAMESPACE)
        kube.kubectl.wait_for("serviceaccount", "default", "-n", NAMESPACE)
        results = asyncio.run(measure(options, kube.kubeconfig))
    finally:
        kube_cluster.down(cluster)
    write(options.json, bench, asdict(results))
    return results


@asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[tuple[Api, KubernetesTransport]]:
    os.environ |= {"KUBECONFIG": str(kubeconfig), "NO_PROXY": "*", "no_proxy": "*"}
    transport = await KubernetesTransport.connect(connections=64)
    api = Api(transport, READ_SECONDS)
    try:
        yield api, transport
    finally:
        await api.close()


def job(name: str) -> dict[str, Any]:
    found = document()
    found["metadata"] |= {"name": name, "namespace": NAMESPACE}
    return found


async def post(api: Api, names: list[str], at_once: int) -> dict[str, float]:
    """Create jobs; when each was answered."""
    slots, answered = asyncio.Semaphore(at_once), {}

    async def one(name: str) -> None:
        async with slots:
            await api.create(JOB, NAMESPACE, job(name))
            answered[name] = time.monotonic()

    await asyncio.gather(*(one(name) for name in names))
    return answered


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def running(kubeconfig: Path, port: int, options: argparse.Namespace) -> Iterator[Operator]:
    """The operator, until it knows everything."""
    arguments = ["--no-leader-election", "--namespace", NAMESPACE, "--workers", str(options.workers)]
    with Operator.start(kubeconfig, port, arguments) as operator:
        operator.wait_ready(120)
        try:
            yield operator
        except BaseException:
            say(f"the operator's last lines:\n{operator.tail()}")
            raise


def cpu_seconds(operator: Operator) -> dict[str, float]:
    """CPU time so far: of the operator, of the servers by name, and of everybody else on this machine."""
    found: dict[str, float] = dict.fromkeys((*SERVERS, "operator"), 0.0)
    for process in psutil.process_iter(["name", "cpu_times"]):
        name, times = process.info["name"], process.info["cpu_times"]
        who = "operator" if process.pid == operator.pid else next(filter(name.startswith, SERVERS), None)
        if who is not None and times is not None:
            found[who] += times.user + times.system
    machine = psutil.cpu_times()
    found["others"] = sum(machine[:8]) - machine.idle - machine.iowait - sum(found.values())  # guests count in user
    return found


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def show(title: str, what: str, rows: list[tuple[str, str, str]]) -> None:
    """Figures beside their goals."""
    table = Table(title=f"{title}, real API server, {os.cpu_count()} cores")
    for column in (what, "figure", "goal"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
