"""Asks running trainers for their reports, apart from reconciling: one small task per running trainer.

What a task finds goes into a cache that reconciling reads. A new phase, or the base model
becoming ready, shows at once; mere progress shows every 30 seconds, because showing it writes the job's status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import aiohttp

from visionrl.status import TrainerReport
from visionrl_core.manifests.common import PORT
from visionrl_core.report import MAX_REPORT_BYTES, read_report
from visionrl_operator.observe import TrainerPod
from visionrl_operator.store import Key

TIMEOUT_SECONDS = 5.0
"""For one whole answer: a trainer that sends it drop by drop must not keep a slot."""
PROGRESS_SECONDS = 30.0
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 10.0
# Requests a second, for all jobs together, at which the pauses begin to grow.
RATE = 50.0
CONCURRENCY = 32

logger = logging.getLogger(__name__)


@dataclass
class _Followed:
    pod: TrainerPod
    changed_at: float
    """When the report last said something new, or when it was first asked for."""
    task: asyncio.Task[None] | None = None
    shown: TrainerReport | None = None
    shown_at: float = 0.0
    latest: TrainerReport | None = None


class Probes:
    """``changed`` is called with a job that there is something to show of; ``read_key`` gives a job's key.

    Made where an event loop runs.
    """

    def __init__(
        self,
        read_key: Callable[[Key], Awaitable[str | None]],
        changed: Callable[[Key], None],
        count: Callable[[str], None] = lambda result: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_key, self._changed, self._count, self._clock = read_key, changed, count, clock
        self._session = _session()
        self._followed: dict[Key, _Followed] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY)

    def report(self, key: Key) -> TrainerReport | None:
        """What is to be shown of the pod that is followed now; the last report stays after its end."""
        followed = self._followed.get(key)
        return followed.shown if followed else None

    def idle(self, key: Key) -> timedelta:
        """How long the trainer that is followed has reported nothing new, since this process asked for the first time;
        nothing while it has not started or has ended."""
        followed = self._followed.get(key)
        if followed is None or followed.pod.address is None:
            return timedelta(0)
        return timedelta(seconds=self._clock() - followed.changed_at)

    def follow(self, key: Key, pod: TrainerPod | None) -> None:
        """Ask this pod from now on, and no other one."""
        followed = self._followed.get(key)
        if pod is None:
            self.stop(key)
            return
        if followed is None or followed.pod.uid != pod.uid:
            self.stop(key)
            followed = self._followed[key] = _Followed(pod, self._clock())
        followed.pod = pod
        if pod.address is None:
            followed.changed_at = self._clock()
            if followed.task is not None:
                followed.task.cancel()
                followed.task = None
        elif pod.address is not None and (followed.task is None or followed.task.done()):
            followed.task = asyncio.create_task(self._poll(key, followed), name=f"probe {key}")

    def stop(self, key: Key) -> None:
        """Forget the job."""
        followed = self._followed.pop(key, None)
        if followed is not None and followed.task is not None:
            followed.task.cancel()

    async def close(self) -> None:
        for key in list(self._followed):
            self.stop(key)
        await self._session.close()

    async def _poll(self, key: Key, followed: _Followed) -> None:
        secret: str | None = None
        failures = 0
        while True:
            if secret is None:
                with contextlib.suppress(Exception):  # asked again after the pause
                    secret = await self._read_key(key)
            if secret is not None:
                result, report = await self._ask(followed.pod, secret)
                self._count(result)
                failures = 0 if report is not None else failures + 1
                if result == "unauthorized":
                    secret = None
                if report is not None:
                    self._consider(key, followed, report)
            await asyncio.sleep(min(LONGEST_PAUSE, self._pause(followed.shown) * 2 ** min(failures, 8)))

    async def _ask(self, pod: TrainerPod, secret: str) -> tuple[str, TrainerReport | None]:
        host = f"[{pod.address}]" if pod.address and ":" in pod.address else pod.address
        headers = {"Authorization": f"Bearer {secret}", "Accept-Encoding": "identity"}
        try:
            async with (
                self._slots,
                asyncio.timeout(TIMEOUT_SECONDS),
                self._session.get(f"http://{host}:{PORT}/status", headers=headers, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return ("unauthorized" if response.status in (401, 403) else "refused"), None
                content = await _read(response)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return "unreachable", None
        report = read_report(content) if content is not None else None
        if report is None:
            logger.warning("the answer of %s is no report of at most %d bytes", pod.address, MAX_REPORT_BYTES)
        return ("invalid" if report is None else "ok"), report

    def _consider(self, key: Key, followed: _Followed, report: TrainerReport) -> None:
        shown, now = followed.shown, self._clock()
        if _is_progress(followed.latest, report):
            followed.changed_at = now
        followed.latest = report
        if report == shown:
            return
        if shown is None or _is_urgent(shown, report) or now - followed.shown_at >= PROGRESS_SECONDS:
            followed.shown, followed.shown_at = report, now
            self._changed(key)

    def _pause(self, shown: TrainerReport | None) -> float:
        """Short near the end, too: the trainer's last report is up for seconds only."""
        if shown is None or shown.phase != "Training" or shown.progress.iteration + 2 >= shown.progress.total:
            return SHORTEST_PAUSE
        return min(LONGEST_PAUSE, max(SHORTEST_PAUSE, len(self._followed) / RATE))


def _session() -> aiohttp.ClientSession:
    """Without proxies, which are for the world outside the cluster, and without a trainer's cookies. Compressed answers
    are not unpacked: a few kilobytes of them can become gigabytes."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The body as it is on the wire; None where it is compressed or too long."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    content = b""
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > MAX_REPORT_BYTES:
            return None
    return content


def _is_progress(before: TrainerReport | None, report: TrainerReport) -> bool:
    """Whether a report says something new. While a trainer waits for inference, the words of what it waits for may
    change without anything happening."""
    if before is not None and report.phase == "WaitingForInference":
        before = before.model_copy(update={"message": report.message})
    return before != report


def _is_urgent(shown: TrainerReport, report: TrainerReport) -> bool:
    return shown.phase != report.phase or shown.base_ready != report.base_ready
