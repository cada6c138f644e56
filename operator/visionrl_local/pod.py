"""A pod with one container, as a process: probes, restarts with back-off, and its state.

Probes mean what they mean in Kubernetes: the others wait for the start-up probe, which limits the time of the start; a
failed readiness probe is only reported; a failed liveness probe ends the container, later if it computes. A container
that hangs is found sooner, by :mod:`visionrl_local.health`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from visionrl.vitals import LOOK_SECONDS, vitals
from visionrl_core.clock import stamp
from visionrl_core.observed import ObservedComponent
from visionrl_local import processes
from visionrl_local.container import Launch, Probe
from visionrl_local.folder import tail
from visionrl_local.health import Pulse
from visionrl_local.ports import LOOPBACK, port_in_use
from visionrl_local.process import GuardedProcess

FIRST_BACKOFF, MAX_BACKOFF = 1.0, 60.0
# A container that was ready for this long has recovered: the next crash is the first one again.
HEALTHY_SECONDS = 60.0
TAIL_LINES = 15
# A container that computes and does not answer gets so many times the patience of its liveness probe: on a machine that
# does too much at once, nobody answers in time.
BUSY_ROUNDS = 5
PORT_TRIES, PORT_RETRY_SECONDS = 40, 0.25


@dataclasses.dataclass(frozen=True)
class Exit:
    """The end of a component's process that was not requested."""

    launch: Launch
    code: int
    reason: str
    tail: list[str]


class LocalPod:
    """Runs a container until :meth:`stop`, or, without ``restarts``, until it ends."""

    def __init__(
        self,
        launch: Launch,
        log: Path,
        title: str,
        restarts: bool,
        client: httpx.AsyncClient,
        changed: Callable[[], None],
        exited: Callable[[Exit], None],
    ) -> None:
        self.launch = launch
        self.state = ObservedComponent(pods=1, instance=uuid.uuid4().hex, created=datetime.now(UTC))
        self.ended = False
        """The container has ended and will not be started again."""
        self.pulse = Pulse()
        self._log, self._title, self._restarts = log, title, restarts
        self._client, self._changed, self._exited = client, changed, exited
        self._process: GuardedProcess | None = None
        self._stopped = asyncio.Event()
        self._hangs: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answered = False
        self._ready_since: float | None = None
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the container with its grace period; no process of it is left afterwards."""
        self._stopped.set()
        await self._task
        self._set(ready=False, pods=0)

    def kill(self) -> None:
        """Do not wait for the rest of the grace period of a stop."""
        if self._process is not None:
            self._process.kill()

    def condemn(self, why: str) -> None:
        """Kill a container that hangs; it is restarted like one that crashed."""
        if not self._hangs.done():
            self._hangs.set_result(why)

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stopped.is_set():
            code, reason = await self._run_once()
            if self._stopped.is_set():
                return
            self._exited(Exit(self.launch, code, reason, tail(self._log, TAIL_LINES)))
            message = "".join(tail(self._log, 1))
            self._set(ready=False, exit_code=code, exit_reason=reason, message=message, ended=datetime.now(UTC))
            if not self._restarts:
                self.ended = True
                self._set(ends=self.state.ends + 1)
                return
            if self._was_healthy():
                backoff = FIRST_BACKOFF
            self._set(reason="CrashLoopBackOff", ends=self.state.ends + 1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), backoff)
            backoff = min(MAX_BACKOFF, 2 * backoff)
            self._set(reason="", message="", restarts=self.state.restarts + 1)

    async def _run_once(self) -> tuple[int, str]:
        """Run the container until it ends, is unhealthy or shall stop; exit code and reason."""
        begun = datetime.now(UTC)
        self._ready_since, self._answered, self.pulse = None, False, Pulse()
        self._hangs = asyncio.get_running_loop().create_future()
        self._mark(f"--- {stamp(begun)} {self._title}, restart {self.state.restarts}")
        if not await self._port_is_free():
            self._mark(f"port {self.launch.port} is in use by another program")
            return 1, "PortInUse"
        try:
            self._process = process = await GuardedProcess.start(self.launch, self._log)
        except OSError as error:  # no memory, no process id, no space for the log
            self._mark(f"cannot be started: {error}")
            return 1, "CannotStart"
        self._set(started=begun)
        ended = asyncio.create_task(process.wait())
        unhealthy = asyncio.create_task(self._probe())
        pulse = asyncio.create_task(self._feel_pulse())
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            events: set[asyncio.Future[Any]] = {ended, unhealthy, stopped, self._hangs}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            reason = ""
            if not ended.done() and self._hangs.done():
                reason = "NoProgress"
                self._mark(self._hangs.result())
                process.kill()  # it would not notice a polite request
            elif not ended.done():
                if unhealthy.done():
                    reason = "Unhealthy"
                    self._mark(unhealthy.result())
                await process.stop()
            code = await ended
        finally:
            for task in (unhealthy, pulse, stopped):
                task.cancel()
            self._process = None
        return code, reason or ("Completed" if code == 0 else "Error")

    async def _port_is_free(self) -> bool:
        """Whether nobody listens on the port. A process that was killed may hold it for a moment, after its environment
        is gone by which it is recognised."""
        for _ in range(PORT_TRIES):
            if self._stopped.is_set() or not port_in_use(self.launch.port):
                return True
            await asyncio.sleep(PORT_RETRY_SECONDS)
        return False

    def _was_healthy(self) -> bool:
        return self._ready_since is not None and time.monotonic() - self._ready_since >= HEALTHY_SECONDS

    def _mark(self, line: str) -> None:
        """Write a line of our own into the log; a full disk costs the line only."""
        with contextlib.suppress(OSError):
            self._log.parent.mkdir(exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{line}\n")

    async def _feel_pulse(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            seen = await asyncio.to_thread(lambda: vitals(processes.processes_with(self.launch.mark)))
            if why := self.pulse.look(seen, silent=self._answered and not self.state.ready):
                self.condemn(why)

    async def _probe(self) -> str:
        """Probe for as long as the container is healthy; then return why it is not."""
        startup = self.launch.startup
        if not await self._probed(startup, until=True):
            return f"no answer on {startup.path} within {startup.period * startup.failures:.0f} s of the start"
        self._answered = True
        self._set_ready(True)
        readiness = asyncio.create_task(self._follow_readiness())
        try:
            for _ in range(BUSY_ROUNDS):
                await self._probed(self.launch.liveness, until=False)
                if self.pulse.idle:
                    break
        finally:
            readiness.cancel()
        return f"no answer on {self.launch.liveness.path} any more"

    async def _follow_readiness(self) -> None:
        while True:
            await self._probed(self.launch.readiness, until=False)
            self._set_ready(False)
            while not await self._probed(self.launch.readiness, until=True):
                pass
            self._set_ready(True)

    async def _probed(self, probe: Probe, until: bool) -> bool:
        """Probe until the first success (``until``), or until ``failures`` failures in a row. Whether it succeeded."""
        failures = 0
        while failures < probe.failures:
            failures = 0 if (answered := await self._get(probe)) else failures + 1
            if answered and until:
                return True
            await asyncio.sleep(probe.period)
        return False

    async def _get(self, probe: Probe) -> bool:
        """Whether the answer is a success. Its body is not read: the container may run an image that a user chose."""
        url = f"http://{LOOPBACK}:{self.launch.port}{probe.path}"
        try:
            async with asyncio.timeout(probe.timeout), self._client.stream("GET", url, timeout=None) as response:
                return 200 <= response.status_code < 400
        except (httpx.HTTPError, TimeoutError):
            return False

    def _set_ready(self, ready: bool) -> None:
        self._ready_since = time.monotonic() if ready else None
        self._set(ready=ready)

    def _set(self, **changes: object) -> None:
        state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]
        if state != self.state:
            self.state = state
            self._changed()
