"""How fast the inference server starts and decides: the tiny model on the CPU, with an adapter.

A decision is one chat completion as the task app asks for it: a new frame, at most 13 tokens, token ids and logprobs.
Servers with one and with several API servers take turns. On few cores these share them with the engine, which a GPU
would carry out: there, what matters is the processor time of the busiest process, for it has one core.

    python -m tests.bench.inference                          # a table
    python -m tests.bench.inference --json out.json          # and the figures as JSON
    python -m tests.bench.inference --vllm '{"maxNumSeqs": 16}' --env VLLM_CPU_NUM_OF_RESERVED_CPU=1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.common import median, spread, write
from tests.support.inference import KEY, InferenceServer, chat_body, publish_adapter, random_frame, tiny_job
from tests.support.trainer import StandInTrainer
from visionrl.job import TinyModel
from visionrl.tiny.model import build_tiny

FRAMES = 256
"""Distinct frames, so that neither the prefix cache nor the image cache answers."""
SECONDS_A_REQUEST = 120.0


@dataclass(frozen=True)
class Pass:
    """Some seconds of decisions."""

    latencies_s: list[float]
    seconds: float
    cpu_s: Mapping[str, float]
    """Of the server's processes, by name."""

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    def cpu_ms(self, engine: bool) -> float:
        """Processor time of a decision: the engine's, or the busiest API server's."""
        chosen = [seconds for name, seconds in self.cpu_s.items() if ("EngineCore" in name) == engine]
        return max(chosen) * 1e3 / len(self.latencies_s)


@dataclass(frozen=True)
class Side:
    """A server that runs, and what it is asked."""

    server: InferenceServer
    startup_s: float
    bodies: list[dict[str, Any]]

    def decide(self, concurrency: int, seconds: float) -> Pass:
        """Keep ``concurrency`` requests in flight for ``seconds``."""
        before = self._cpu_s()
        latencies, elapsed = asyncio.run(self._send(concurrency, seconds))
        return Pass(latencies, elapsed, {name: after - before[name] for name, after in self._cpu_s().items()})

    def _cpu_s(self) -> dict[str, float]:
        first = psutil.Process(self.server.pid)
        times = {f"{each.name()} {each.pid}": each.cpu_times() for each in (first, *first.children(recursive=True))}
        return {name: spent.user + spent.system for name, spent in times.items()}

    async def _send(self, concurrency: int, seconds: float) -> tuple[list[float], float]:
        frames, latencies = itertools.count(), list[float]()
        async with self.server.load_client(concurrency, SECONDS_A_REQUEST) as client:
            started = time.perf_counter()

            async def decide() -> None:
                while time.perf_counter() - started < seconds:
                    began = time.perf_counter()
                    body = self.bodies[next(frames) % len(self.bodies)]
                    async with client.post("/v1/chat/completions", json=body) as answer:
                        answer.raise_for_status()
                        await answer.read()
                    latencies.append(time.perf_counter() - began)

            await asyncio.gather(*(decide() for _ in range(concurrency)))
            return latencies, time.perf_counter() - started


@contextlib.contextmanager
def running(vllm: dict[str, Any]) -> Iterator[Side]:
    """A server with these vLLM settings, which has loaded an adapter and is warm."""
    job = tiny_job(vllm)
    with tempfile.TemporaryDirectory() as scratch, StandInTrainer(Path(scratch) / "trainer", KEY) as trainer:
        model = build_tiny(TinyModel(), job.spec.rollout.env_config, Path(scratch) / "cache")
        name = publish_adapter(model, trainer.root / "adapters", 1)
        server = InferenceServer(job, Path(scratch), trainer.url)
        try:
            startup_s = server.start()
            side = Side(server, startup_s, [chat_body(name, random_frame(seed)) for seed in range(FRAMES)])
            side.decide(8, 3.0)
            yield side
        finally:
            server.kill()


def measure(
    vllm: dict[str, Any], api_servers: Sequence[int], concurrencies: Sequence[int], seconds: float, rounds: int
) -> dict[str, Any]:
    """A row for each concurrency and number of API servers; those take turns in each round."""
    with contextlib.ExitStack() as stack:
        sides = {count: stack.enter_context(running(vllm | {"apiServerCount": count})) for count in api_servers}
        rows = []
        for concurrency in concurrencies:
            passes: dict[int, list[Pass]] = {count: [] for count in sides}
            for round_ in range(rounds):
                for count in sides if round_ % 2 else reversed(list(sides)):
                    passes[count].append(sides[count].decide(concurrency, seconds))
            rows += [{"api_servers": count, "concurrency": concurrency, **_row(passes[count])} for count in sides]
    return {
        "vllm": vllm,
        "startup_s": {count: round(side.startup_s, 1) for count, side in sides.items()},
        "rows": rows,
    }


def _row(passes: Sequence[Pass]) -> dict[str, Any]:
    latencies, rates = [each for one in passes for each in one.latencies_s], [one.per_s for one in passes]
    return {
        "decisions": len(latencies),
        "decisions_per_s": round(median(rates), 1),
        "spread": round(spread(rates), 3),
        "p50_ms": round(statistics.median(latencies) * 1e3, 1),
        "p95_ms": round(statistics.quantiles(latencies, n=20)[-1] * 1e3, 1),
        "engine_cpu_ms": round(median([one.cpu_ms(engine=True) for one in passes]), 1),
        "busiest_api_server_cpu_ms": round(median([one.cpu_ms(engine=False) for one in passes]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=json.loads, default={}, help="settings of spec.inference.vllm, as JSON")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of the servers")
    parser.add_argument("--api-servers", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="time of a pass (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="passes of each side (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the finally that ends the servers
    os.environ.update(item.split("=", 1) for item in arguments.env)
    result = measure(arguments.vllm, arguments.api_servers, arguments.concurrency, arguments.seconds, arguments.rounds)
    print(f"start-up {result['startup_s']} s    {json.dumps(arguments.vllm)} {' '.join(arguments.env)}")
    columns = list(result["rows"][0])
    print(" ".join(column.replace("_", " ") for column in columns))
    for row in result["rows"]:
        print(" ".join(f"{row[column]:>{len(column)}}" for column in columns))
    write(arguments.json, "inference", result)


if __name__ == "__main__":
    main()
