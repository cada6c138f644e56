"""The operator under many jobs, against a real API server without a node: ``python -m tests.bench.operator``.

Applies jobs one at a time, then all at once, and measures from the answer to each POST until a watch of our own has
shown all of the job's first objects. Then it counts what a quiet cluster makes the operator write, and how long a
restarted operator takes to know all jobs again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from tests.bench import control_plane
from tests.bench.control_plane import NAMESPACE, connected, cpu_seconds, percentile, post, running, say
from tests.support.ports import free_port
from visionrl_core.kinds import OWNED_KINDS, OWNED_SELECTOR
from visionrl_operator.api import KubernetesTransport

# What a job without a warm start gets at once, Secrets aside (they are made first, and not watched by label here).
FIRST_CHILDREN = {"ConfigMap": 1, "NetworkPolicy": 2, "Service": 3, "Deployment": 2}


@dataclass
class Results(control_plane.Results):
    """Seconds, except where the name says otherwise."""

    single_p50: float = 0.0
    single_p99: float = 0.0
    all_manifests: float = 0.0
    each_p50: float = 0.0
    each_p99: float = 0.0
    posting: float = 0.0
    writes_per_job: float = 0.0
    settled: float = 0.0
    quiet_writes_per_minute: float = 0.0
    rss_mib: float = 0.0
    restart: float = 0.0
    restart_writes: int = 0
    cpu_operator: float = 0.0
    cpu_apiserver: float = 0.0
    cpu_etcd: float = 0.0
    cpu_controllers: float = 0.0
    cpu_others: float = 0.0


class Arrivals:
    """When each job had all of its first objects."""

    def __init__(self) -> None:
        self.complete: dict[str, float] = {}
        self._missing: dict[str, dict[str, int]] = defaultdict(lambda: dict(FIRST_CHILDREN))
        self._changed = asyncio.Event()

    def add(self, kind: str, name: str) -> None:
        missing = self._missing[name]
        missing[kind] -= 1
        if all(count <= 0 for count in missing.values()) and name not in self.complete:
            self.complete[name] = time.monotonic()
            self._changed.set()

    async def wait(self, names: list[str], limit_s: float) -> None:
        waiting = set(names)
        try:
            async with asyncio.timeout(limit_s):
                while waiting := waiting - self.complete.keys():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            name = min(waiting)
            raise SystemExit(f"{len(waiting)} jobs lack objects; {name}: {dict(self._missing[name])}") from None


@asynccontextmanager
async def watching(transport: KubernetesTransport) -> AsyncIterator[Arrivals]:
    """Watches of our own, one a kind."""
    arrivals = Arrivals()
    tasks = [asyncio.create_task(_watch(transport, kind, arrivals)) for kind in FIRST_CHILDREN]
    await asyncio.sleep(1)
    try:
        yield arrivals
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(transport: KubernetesTransport, kind: str, arrivals: Arrivals) -> None:
    configuration: Any = transport._configuration
    url = f"{configuration.host}{OWNED_KINDS[kind].path(NAMESPACE)}"
    parameters = {"watch": "true", "labelSelector": OWNED_SELECTOR}
    session = transport._rest.pool_manager
    assert session is not None
    response = await session.get(url, params=parameters, timeout=aiohttp.ClientTimeout(total=None))
    async for line in response.content:
        event = json.loads(line)
        if event["type"] == "ADDED":
            arrivals.add(kind, event["object"]["metadata"]["labels"]["visionrl.dev/job"])


async def measure(options: argparse.Namespace, kubeconfig: Path) -> Results:
    results = Results(options.jobs)
    async with connected(kubeconfig) as (api, transport):
        await api.groups()  # opens the session that the watches use
        port = free_port()
        with running(kubeconfig, port, options) as operator:
            async with watching(transport) as arrivals:
                say("one job at a time")
                waits = []
                for index in range(options.single):
                    name = f"single-{index}"
                    answered = await post(api, [name], 1)
                    await arrivals.wait([name], 60)
                    waits.append(arrivals.complete[name] - answered[name])
                results.single_p50, results.single_p99 = percentile(waits, 0.5), percentile(waits, 0.99)

                say(f"{options.jobs} jobs at once")
                names = [f"many-{index}" for index in range(options.jobs)]
                writes, cpu, started = await writes_of(port), cpu_seconds(operator), time.monotonic()
                answered = await post(api, names, options.at_once)
                results.posting = time.monotonic() - started
                await arrivals.wait(names, options.limit)
                results.all_manifests = max(arrivals.complete[name] for name in names) - started
                latencies = [arrivals.complete[name] - answered[name] for name in names]
                results.each_p50, results.each_p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
                spent = {who: seconds - cpu[who] for who, seconds in cpu_seconds(operator).items()}
                results.cpu_operator, results.cpu_apiserver = spent["operator"], spent["kube-apiserver"]
                results.cpu_etcd, results.cpu_others = spent["etcd"], spent["others"]
                results.cpu_controllers = spent["kube-controller"] + spent["kube-scheduler"]

                say("until nothing is written any more")
                results.settled = await settled(port, started)
                results.writes_per_job = (await writes_of(port) - writes) / options.jobs

                say(f"{options.quiet:g} s of quiet")
                before = await writes_of(port)
                await asyncio.sleep(options.quiet)
                results.quiet_writes_per_minute = (await writes_of(port) - before) * 60 / options.quiet
                results.rss_mib = operator.rss_mib()

                say("restart")
                operator.kill()
                port = free_port()
                started = time.monotonic()
                with running(kubeconfig, port, options):
                    results.restart = time.monotonic() - started
                    await settled(port, started)
                    results.restart_writes = int(await writes_of(port))
    return results


async def writes_of(port: int) -> float:
    """Writes so far, by the operator's own count."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics", timeout=60)).text
    return sum(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("visionrl_operator_api_writes_t")
    )


async def settled(port: int, started: float) -> float:
    """Wait until nothing is written for ten seconds; when the last write was, counted from the start."""
    count, last = -1.0, time.monotonic()
    while time.monotonic() - last < 10:
        now = await writes_of(port)
        if now != count:
            count, last = now, time.monotonic()
        await asyncio.sleep(0.5)
    return last - started


def show(results: Results) -> None:
    window = results.all_manifests * (os.cpu_count() or 1)

    def share(seconds: float) -> str:
        return f"{seconds:.1f} s CPU, {seconds / window:.0%} of all cores"

    rows = [
        ("one job: POST answered → objects seen, p50", f"{results.single_p50 * 1000:.0f} ms", ""),
        ("one job, p99", f"{results.single_p99 * 1000:.0f} ms", "≤ 250 ms"),
        (f"{results.jobs} jobs at once: first POST → last child", f"{results.all_manifests:.1f} s", "≤ 30 s"),
        ("  of it, posting the jobs", f"{results.posting:.1f} s", ""),
        ("  each job, p50 / p99", f"{results.each_p50:.1f} / {results.each_p99:.1f} s", ""),
        ("  API server", share(results.cpu_apiserver), ""),
        ("  etcd", share(results.cpu_etcd), ""),
        ("  controller manager and scheduler", share(results.cpu_controllers), ""),
        ("  operator", share(results.cpu_operator), ""),
        ("  everything else (this program, other work)", share(results.cpu_others), ""),
        ("writes per job until settled, events included", f"{results.writes_per_job:.1f}", ""),
        ("settled (last write)", f"{results.settled:.1f} s", ""),
        ("writes in a quiet minute", f"{results.quiet_writes_per_minute:.1f}", "0"),
        ("RSS", f"{results.rss_mib:.0f} MiB", "≤ 200 MB"),
        ("restart after SIGKILL: all jobs known", f"{results.restart:.1f} s", "≤ 10 s"),
        ("  writes of the restarted operator", f"{results.restart_writes}", "0"),
        ("load average before", f"{results.load_before:.1f}", ""),
    ]
    control_plane.show(f"operator, {results.jobs} jobs", "what", rows)


def main() -> None:
    parser = control_plane.arguments("operator", __doc__, limit_s=600)
    parser.add_argument("--single", type=int, default=50, help="created one after the other (default: 50)")
    parser.add_argument("--at-once", type=int, default=8, help="POSTs in flight (default: 8)")
    parser.add_argument("--quiet", type=float, default=60, help="seconds of quiet (default: 60)")
    show(control_plane.measured(parser.parse_args(), "operator", measure))


if __name__ == "__main__":
    main()
