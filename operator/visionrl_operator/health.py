"""``/healthz``, ``/readyz`` and ``/metrics`` on one port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from visionrl_operator.metrics import Metrics

# A pass is bounded in time; one that lasts longer hangs, and only a restart helps.
STUCK_SECONDS = 300.0


class Health:
    """What the probes answer."""

    def __init__(self) -> None:
        self.state = "starting"
        """``starting``, ``standing by``, ``leading``, ``stopping``."""
        self.synced = asyncio.Event()
        """Everything that exists is known."""
        self.busy_since: dict[int, float] = {}
        """By worker: when its pass began (``time.monotonic``)."""

    def problem(self) -> str:
        """Why the process should be restarted; empty when it is well."""
        longest = max((time.monotonic() - since for since in self.busy_since.values()), default=0.0)
        return f"a pass lasts {longest:.0f} s" if longest > STUCK_SECONDS else ""

    @property
    def ready(self) -> bool:
        """A process that stands by is ready to take over."""
        return self.state == "standing by" or (self.state == "leading" and self.synced.is_set())


async def serve(health: Health, metrics: Metrics, host: str, port: int) -> tuple[Callable[..., object], int]:
    """Start the server; how to stop it (a coroutine function), and its port. Raises ``OSError`` where it is taken."""

    async def healthz(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(text=problem or "ok\n", status=503 if problem else 200)

    async def readyz(_: web.Request) -> web.Response:
        synced = "" if health.synced.is_set() or health.state != "leading" else ", reading what exists"
        return web.Response(text=f"{health.state}{synced}\n", status=200 if health.ready else 503)

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    application = web.Application()
    application.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner.cleanup, runner.addresses[0][1]
