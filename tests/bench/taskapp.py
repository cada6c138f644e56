"""How many episodes a second the task app plays, with the scripted player in place of a model.

    python -m tests.bench.taskapp [--episodes 200] [--turns 30] [--size 288] [--json FILE]

`http` counts whole `POST /rollout` calls against a real server process, `in process` the same without HTTP and
JSON. The scripted player costs a fraction of a millisecond a decision, so this is what the environment side
allows. The CPU time is the playing process's alone and holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.bench.common import write
from tests.support.taskapp import KEY, taskapp
from visionrl.rollout import RolloutRequest
from visionrl_taskapp.envs.crafter.env import warm_up
from visionrl_taskapp.policies.inference_client import InferenceClient
from visionrl_taskapp.rollouts.episode import Services, play
from visionrl_taskapp.rollouts.simulation import Worlds
from visionrl_taskapp.server.validation import parse_request

GROUP = 8
"""Episodes of one seed, as in training."""
FIRST_SEED = 5_000_000


def request_data(index: int, turns: int, size: int, images: bool) -> dict[str, Any]:
    return {
        "run_id": f"bench-{index}",
        "mode": "rl",
        "env": {"seed": FIRST_SEED + index // GROUP, "config": {"image_size": size}},
        "policy": {"policy_name": "crafter-scripted", "config": {"max_llm_calls": turns, "max_actions": 4}},
        "record": {"trajectories": False, "images": images},
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def in_process(requests: list[RolloutRequest]) -> tuple[float, int]:
    """Seconds and decisions of playing the requests one after another."""
    inference = InferenceClient(None, None, None)
    with ThreadPoolExecutor(1) as workers:
        services = Services(Worlds(), inference, workers)
        began = time.perf_counter()
        decisions = 0
        for request in requests:
            decisions += len((await play(request, services)).turns)
        seconds = time.perf_counter() - began
    await inference.close()
    return seconds, decisions


async def over_http(url: str, bodies: list[dict[str, Any]], concurrency: int) -> tuple[float, int, int]:
    """Seconds, decisions and bytes of the answers, `concurrency` requests in flight."""
    queue = iter(bodies)
    decisions = size = 0
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    headers = {"x-api-key": KEY}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120, trust_env=False) as client:

        async def worker() -> None:
            nonlocal decisions, size
            for body in queue:
                answer = await client.post("/rollout", json=body)
                answer.raise_for_status()
                size += len(answer.content)
                decisions += answer.json()["trajectories"][0]["length"]

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return time.perf_counter() - began, decisions, size


def measure(episodes: int, turns: int, size: int) -> list[dict[str, Any]]:
    warm_up()
    rows = []
    requests = [parse_request(request_data(index, turns, size, images=False)) for index in range(episodes)]
    before = cpu_seconds(os.getpid())
    seconds, decisions = asyncio.run(in_process(requests))
    rows.append(_row("in process, hashes only", 1, episodes, seconds, cpu_seconds(os.getpid()) - before, decisions))
    with tempfile.TemporaryDirectory() as folder:
        for traced in (False, True):
            variables = {"VISIONRL_TRACE_DIR": folder} if traced else {}
            for images, concurrency in ((False, 1), (False, 16), (True, 16)):
                with taskapp(Path(folder), **variables) as app:
                    bodies = [request_data(index, turns, size, images) for index in range(episodes)]
                    before = cpu_seconds(app.process.pid)
                    seconds, decisions, received = asyncio.run(over_http(app.url, bodies, concurrency))
                    cpu = cpu_seconds(app.process.pid) - before
                name = f"http, {'images' if images else 'hashes only'}{', traces.db' if traced else ''}"
                rows.append(_row(name, concurrency, episodes, seconds, cpu, decisions, received))
    return rows


def _row(
    name: str, concurrency: int, episodes: int, seconds: float, cpu: float, decisions: int, received: int = 0
) -> dict[str, Any]:
    return {
        "what": name,
        "in_flight": concurrency,
        "episodes_per_s": round(episodes / seconds, 1),
        "decisions_per_s": round(decisions / seconds, 1),
        "cpu_ms_per_episode": round(1000 * cpu / episodes, 1),
        "kb_per_episode": round(received / episodes / 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--size", type=int, default=288, help="image size in pixels")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    rows = measure(arguments.episodes, arguments.turns, arguments.size)
    print(f"{arguments.episodes} episodes of {arguments.turns} turns, {arguments.size} px, {os.cpu_count()} CPU cores")
    print(f"{'':34} in flight  episodes/s  decisions/s  CPU ms/episode  kB/episode")
    for row in rows:
        print(
            f"{row['what']:34} {row['in_flight']:9} {row['episodes_per_s']:11} {row['decisions_per_s']:12} "
            f"{row['cpu_ms_per_episode']:15} {row['kb_per_episode']:11}"
        )
    settings = {name: getattr(arguments, name) for name in ("episodes", "turns", "size")}
    write(arguments.json, "taskapp", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
