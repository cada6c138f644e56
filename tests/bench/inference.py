"""How fast the inference server starts and decides: the tiny model at 144 px on the CPU, with an adapter.

A decision is one chat completion as the task app asks for it: a new frame, at most 13 tokens, token ids and logprobs.

    python -m tests.bench.inference                          # a table
    python -m tests.bench.inference --json out.json          # and the figures as JSON
    python -m tests.bench.inference --vllm '{"maxNumSeqs": 16}' --env VLLM_CPU_NUM_OF_RESERVED_CPU=1
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.bench.common import process_group_seconds, write
from tests.support.inference import JOB_NAME, KEY, InferenceServer, chat_body, make_adapter, random_frame, tiny_job
from tests.support.trainer import StandInTrainer, named_by_content
from visionrl.job import TinyModel
from visionrl.tiny.model import build_tiny

FRAMES = 256
"""Distinct frames, so that neither the prefix cache nor the image cache answers."""


async def decisions_per_second(
    url: str, bodies: list[dict[str, Any]], concurrency: int, seconds: float
) -> dict[str, float]:
    """Keep ``concurrency`` requests in flight for ``seconds``; rate over the answered ones, latency in ms."""
    frames = itertools.count()
    latencies: list[float] = []
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits, trust_env=False) as client:
        started = time.perf_counter()

        async def decide() -> None:
            while time.perf_counter() - started < seconds:
                began = time.perf_counter()
                answer = await client.post("/v1/chat/completions", json=bodies[next(frames) % len(bodies)])
                answer.raise_for_status()
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(decide() for _ in range(concurrency)))
        elapsed = time.perf_counter() - started
    return {
        "concurrency": concurrency,
        "decisions": len(latencies),
        "decisions_per_s": round(len(latencies) / elapsed, 1),
        "p50_ms": round(statistics.median(latencies) * 1e3, 1),
        "p95_ms": round(statistics.quantiles(latencies, n=20)[-1] * 1e3, 1),
    }


def measure(vllm: dict[str, Any], concurrencies: list[int], seconds: float) -> dict[str, Any]:
    """Start a server with these vLLM settings, load an adapter, measure each concurrency, end the server."""
    job = tiny_job(vllm)
    with tempfile.TemporaryDirectory() as scratch, StandInTrainer(Path(scratch) / "trainer", KEY) as trainer:
        model = build_tiny(TinyModel(), job.spec.rollout.env_config, Path(scratch) / "cache")
        make_adapter(model, trainer.root / "adapters" / "draft", seed=0)
        name = named_by_content(trainer.root / "adapters" / "draft", JOB_NAME, 1)
        bodies = [chat_body(name, random_frame(seed)) for seed in range(FRAMES)]
        server = InferenceServer(job, Path(scratch), trainer.url)
        try:
            startup_s = server.start()
            asyncio.run(decisions_per_second(server.url, bodies, 2, 3.0))  # loads the adapter, warms up
            rates = []
            for concurrency in concurrencies:
                before = process_group_seconds(server.pid)
                rate = asyncio.run(decisions_per_second(server.url, bodies, concurrency, seconds))
                rate["cpu_ms"] = round((process_group_seconds(server.pid) - before) * 1e3 / rate["decisions"], 1)
                rates.append(rate)
        finally:
            server.kill()
    return {"vllm": vllm, "startup_s": round(startup_s, 1), "rows": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=json.loads, default={}, help="settings of spec.inference.vllm, as JSON")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of the server")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="time measured at each concurrency")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the finally that ends the server
    os.environ.update(item.split("=", 1) for item in arguments.env)
    result = measure(arguments.vllm, arguments.concurrency, arguments.seconds)
    print(f"start-up {result['startup_s']} s    {json.dumps(arguments.vllm)} {' '.join(arguments.env)}")
    print(f"{'concurrency':>12}{'decisions/s':>14}{'p50 ms':>10}{'p95 ms':>10}{'CPU ms each':>14}")
    for rate in result["rows"]:
        cells = (rate["concurrency"], rate["decisions_per_s"], rate["p50_ms"], rate["p95_ms"], rate["cpu_ms"])
        print("{:>12}{:>14}{:>10}{:>10}{:>14}".format(*cells))
    write(arguments.json, "inference", result)


if __name__ == "__main__":
    main()
