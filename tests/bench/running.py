"""The operator under jobs that train, against a real API server without a node: ``python -m tests.bench.running``.

What nodes would report is written here: pods that run. One server answers for all trainers, each time with progress.
Then it counts what the operator writes, and what it needs for that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import control_plane
from tests.bench.control_plane import NAMESPACE, connected, cpu_seconds, percentile, post, running, say
from tests.support.operator_process import Operator
from tests.support.ports import free_port
from visionrl.status import Progress, TrainerReport
from visionrl_core.kinds import JOB, OWNED_SELECTOR, POD
from visionrl_core.manifests.common import COMPONENT_LABEL, COMPONENTS, PORT
from visionrl_operator.api import Api, ApiError

ITERATION_SECONDS, EPISODES_PER_SECOND = 6.0, 1.0


@dataclass
class Results(control_plane.Results):
    """Of one minute, except where the name says otherwise."""

    minutes: float = 0.0
    reports: float = 0.0
    """Answers of trainers."""
    status_writes: float = 0.0
    status_writes_of_a_job_p99: float = 0.0
    other_writes: float = 0.0
    reads: float = 0.0
    cpu_seconds: float = 0.0
    apiserver_cpu_seconds: float = 0.0
    rss_mib: float = 0.0
    age_p99_seconds: float = 0.0
    """Of the progress that a job's status shows at the end."""


# --- trainers


@asynccontextmanager
async def trainers() -> AsyncIterator[None]:
    """Answers ``GET /status`` on all loopback addresses."""
    began = time.monotonic()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                body = report(time.monotonic() - began).model_dump_json(by_alias=True, exclude_none=True).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "0.0.0.0", PORT, backlog=1024):
        yield


def report(elapsed: float) -> TrainerReport:
    """Something new at every look."""
    iteration = int(elapsed / ITERATION_SECONDS)
    progress = Progress(
        iteration=iteration,
        total=100_000,
        episodes=int(elapsed * EPISODES_PER_SECOND),
        episodes_per_minute=60 * EPISODES_PER_SECOND,
        reward=round(elapsed, 2),
        entropy=1 / (1 + iteration),
    )
    return TrainerReport(phase="Training", message=f"iteration {iteration}", base_ready=True, progress=progress)


# --- nodes


async def run_pods(api: Api, jobs: int, limit_s: float) -> None:
    """Make every pod run, until there are those of all components."""
    done: set[str] = set()
    slots = asyncio.Semaphore(16)

    async def one(pod: dict[str, Any], number: int) -> None:
        component = pod["metadata"]["labels"][COMPONENT_LABEL]
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        container = {"name": component, "ready": True, "restartCount": 0, "image": "x", "imageID": "x", "state": state}
        status = {
            "phase": "Running",
            "podIP": f"127.1.{number // 250}.{1 + number % 250}",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container],
        }
        with contextlib.suppress(ApiError):  # a busy API server: in the next round
            async with slots:
                await api.patch_status(POD, NAMESPACE, pod["metadata"]["name"], {"status": status})
            done.add(pod["metadata"]["uid"])

    async with asyncio.timeout(limit_s):
        while len(done) < len(COMPONENTS) * jobs:
            found = (await api.list(POD, NAMESPACE, labelSelector=OWNED_SELECTOR, resourceVersion="0"))["items"]
            fresh = [pod for pod in found if pod["metadata"]["uid"] not in done]
            began = len(done)
            await asyncio.gather(*(one(pod, began + index) for index, pod in enumerate(fresh)))
            say(f"{len(done)} of {len(COMPONENTS) * jobs} pods run")
            await asyncio.sleep(2)


async def statuses(api: Api) -> list[dict[str, Any]]:
    return [job.get("status", {}) for job in (await api.list(JOB, NAMESPACE, resourceVersion="0"))["items"]]


async def all_train(api: Api) -> None:
    while True:
        waiting = [status for status in await statuses(api) if status.get("phase") != "Running"]
        if not waiting:
            return
        say(f"{len(waiting)} jobs do not train yet")
        await asyncio.sleep(2)


# --- measuring


def counted(operator: Operator) -> dict[str, float]:
    """Requests so far, by verb and kind, and reports."""
    found: dict[str, float] = {"reads": 0.0, "status": 0.0, "other": 0.0, "reports": 0.0}
    for line in operator.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("visionrl_operator_probe_requests_total{"):
            found["reports"] += float(value)
        elif name.startswith("visionrl_operator_api_requests_total{"):
            kind = "reads" if 'verb="get"' in name else "status" if f'kind="{JOB.name}"' in name else "other"
            found[kind] += float(value) if 'kind="Lease"' not in name else 0.0
    return found


async def versions(api: Api, seen: dict[str, list[str]], stop: asyncio.Event) -> None:
    """Every status that a job shows: reads are cheap, and twice as frequent as writes may be."""
    while not stop.is_set():
        for job in (await api.list(JOB, NAMESPACE, resourceVersion="0"))["items"]:
            history = seen.setdefault(job["metadata"]["name"], [])
            version = job["metadata"]["resourceVersion"]
            if not history or history[-1] != version:
                history.append(version)
        await asyncio.sleep(10)


async def measure(options: argparse.Namespace, kubeconfig: Path) -> Results:
    results = Results(options.jobs)
    async with connected(kubeconfig) as (api, _), trainers():
        began = time.monotonic()
        with running(kubeconfig, free_port(), options) as operator:
            say(f"{options.jobs} jobs")
            await post(api, [f"job-{index}" for index in range(options.jobs)], 8)
            await run_pods(api, options.jobs, options.limit)
            await all_train(api)
            await asyncio.sleep(60)  # what their start wrote is over
            seen: dict[str, list[str]] = {}
            stop = asyncio.Event()
            watch = asyncio.create_task(versions(api, seen, stop))
            before, cpu, started = counted(operator), cpu_seconds(operator), time.monotonic()
            await asyncio.sleep(60 * options.minutes)
            after, spent = counted(operator), cpu_seconds(operator)
            minutes = (time.monotonic() - started) / 60
            stop.set()
            await watch
            results.minutes = minutes
            results.reports = (after["reports"] - before["reports"]) / minutes
            results.status_writes = (after["status"] - before["status"]) / minutes
            results.other_writes = (after["other"] - before["other"]) / minutes
            results.reads = (after["reads"] - before["reads"]) / minutes
            results.cpu_seconds = (spent["operator"] - cpu["operator"]) / minutes
            results.apiserver_cpu_seconds = (spent["kube-apiserver"] - cpu["kube-apiserver"]) / minutes
            results.status_writes_of_a_job_p99 = percentile([(len(v) - 1) / minutes for v in seen.values()], 0.99)
            results.rss_mib = operator.rss_mib()
            shown = [status["progress"]["reward"] for status in await statuses(api)]
            results.age_p99_seconds = percentile([time.monotonic() - began - reward for reward in shown], 0.99)
    return results


def show(results: Results) -> None:
    rows = [
        ("reports read from trainers", f"{results.reports:.0f}", ""),
        ("status writes", f"{results.status_writes:.0f}", f"≤ {2 * results.jobs}"),
        ("status writes of one job, p99", f"{results.status_writes_of_a_job_p99:.1f}", "≤ 2"),
        ("other writes", f"{results.other_writes:.0f}", "0"),
        ("reads from the API server", f"{results.reads:.0f}", ""),
        ("CPU of the operator", f"{results.cpu_seconds:.1f} s", ""),
        ("CPU of the API server", f"{results.apiserver_cpu_seconds:.1f} s", ""),
        ("RSS of the operator", f"{results.rss_mib:.0f} MiB", "≤ 200 MB"),
        ("age of the progress that is shown, p99", f"{results.age_p99_seconds:.0f} s", ""),
        ("minutes measured; load average before", f"{results.minutes:.1f}; {results.load_before:.1f}", ""),
    ]
    control_plane.show(f"operator, {results.jobs} training jobs", "in a minute", rows)


def main() -> None:
    parser = control_plane.arguments("running", __doc__, limit_s=1800)
    parser.add_argument("--minutes", type=float, default=3, help="of measuring (default: 3)")
    show(control_plane.measured(parser.parse_args(), "running", measure))


if __name__ == "__main__":
    main()
