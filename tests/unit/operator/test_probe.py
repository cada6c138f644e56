"""Trainers' reports: a new phase at once, progress at intervals, and never another trainer's."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from aiohttp import web

from visionrl.status import Progress, TrainerReport
from visionrl_core.manifests.common import PORT
from visionrl_core.report import MAX_TEXT
from visionrl_operator import probe
from visionrl_operator.observe import TrainerPod
from visionrl_operator.probe import Probes
from visionrl_operator.store import Key

DEMO = Key("default", "demo")
POD = TrainerPod("pod-1", "127.0.0.1")


class Trainer:
    """Answers as the test says; ``changed`` holds the jobs that there was something to show of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pause: float = 0.001) -> None:
        self.report = TrainerReport(phase="Starting")
        self.status, self.asked, self.keys_read = 200, 0, 0
        self.key = "right"
        self.seconds = 1000.0
        """What the operator's clock shows."""
        self.changed: asyncio.Queue[Key] = asyncio.Queue()
        monkeypatch.setattr(probe, "SHORTEST_PAUSE", pause)
        monkeypatch.setattr(probe, "LONGEST_PAUSE", pause)
        self.probes = Probes(self.read_key, self.changed.put_nowait, clock=lambda: self.seconds)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if request.headers["Authorization"] != f"Bearer {self.key}":
            return web.Response(status=401)
        return web.Response(status=self.status, text=self.report.model_dump_json(by_alias=True))

    async def read_key(self, key: Key) -> str | None:
        self.keys_read += 1
        return self.key

    async def next_change(self) -> TrainerReport:
        await asyncio.wait_for(self.changed.get(), 10)
        report = self.probes.report(DEMO)
        assert report is not None
        return report

    async def asked_more(self, times: int = 3) -> None:
        wanted = self.asked + times
        async with asyncio.timeout(10):
            while self.asked < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def trainer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trainer]:
    found = Trainer(monkeypatch)
    application = web.Application()
    application.router.add_get("/status", found.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert PORT == 8000
    monkeypatch.setattr(probe, "PORT", runner.addresses[0][1])
    yield found
    await found.probes.close()
    await runner.cleanup()


async def test_a_new_phase_shows_at_once(trainer: Trainer) -> None:
    trainer.probes.follow(DEMO, POD)
    assert (await trainer.next_change()).phase == "Starting"
    trainer.report = TrainerReport(phase="Training")
    assert (await trainer.next_change()).phase == "Training"


async def test_progress_alone_shows_in_measure(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.report = TrainerReport(phase="Training")
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.report = TrainerReport(phase="Training", progress=Progress(iteration=1, total=9))
    await trainer.asked_more()
    assert trainer.changed.empty()
    monkeypatch.setattr(probe, "PROGRESS_SECONDS", 0.0)
    assert (await trainer.next_change()).progress.iteration == 1
    await trainer.asked_more()
    assert trainer.changed.empty(), "the same report again changes nothing"


async def test_another_pod_starts_with_a_clean_sheet(trainer: Trainer) -> None:
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.status = 503
    trainer.probes.follow(DEMO, TrainerPod("pod-2", "127.0.0.1"))
    assert trainer.probes.report(DEMO) is None
    await trainer.asked_more()
    assert trainer.probes.report(DEMO) is None


async def test_the_last_report_stays_when_the_pod_has_ended(trainer: Trainer) -> None:
    trainer.report = TrainerReport(phase="Complete")
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.probes.follow(DEMO, TrainerPod("pod-1", None))
    await asyncio.sleep(0.02)  # a request that was under way arrives
    asked = trainer.asked
    await asyncio.sleep(0.02)
    assert trainer.asked == asked
    report = trainer.probes.report(DEMO)
    assert report is not None
    assert report.phase == "Complete"
    trainer.probes.follow(DEMO, None)
    assert trainer.probes.report(DEMO) is None


async def test_idle_is_the_time_since_the_report_said_something_new(trainer: Trainer) -> None:
    trainer.report = TrainerReport(phase="Training")
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.seconds += 50
    await trainer.asked_more()
    assert trainer.probes.idle(DEMO) == timedelta(seconds=50)
    trainer.report = TrainerReport(phase="Training", progress=Progress(episodes=1))
    await trainer.asked_more()
    assert trainer.probes.idle(DEMO) == timedelta(0), "an episode is something new, long before it shows"
    trainer.seconds += 70
    trainer.status = 503
    await trainer.asked_more()
    assert trainer.probes.idle(DEMO) == timedelta(seconds=70), "neither is silence"
    trainer.probes.follow(DEMO, TrainerPod("pod-2", "127.0.0.1"))
    assert trainer.probes.idle(DEMO) == timedelta(0), "another trainer"


async def test_what_a_trainer_waits_for_may_have_other_words_without_progress(trainer: Trainer) -> None:
    trainer.report = TrainerReport(phase="WaitingForInference", message="1 s")
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.seconds += 50
    trainer.report = TrainerReport(phase="WaitingForInference", message="51 s")
    await trainer.asked_more()
    assert trainer.probes.idle(DEMO) == timedelta(seconds=50)


async def test_a_changed_key_is_read_again(trainer: Trainer) -> None:
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.key = "another"
    trainer.report = TrainerReport(phase="Training")
    assert (await trainer.next_change()).phase == "Training"
    assert trainer.keys_read == 2


async def test_following_again_starts_no_second_task(trainer: Trainer) -> None:
    for _ in range(5):
        trainer.probes.follow(DEMO, POD)
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "probe default/demo"]
    assert len(tasks) == 1


# --- trainers that nobody should trust: a user chose their container image


class Stranger:
    """A real server in the trainer's place that answers with raw bytes, and counts what was taken of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.probes = Probes(self._read_key, lambda key: None)

    async def _read_key(self, key: Key) -> str | None:
        return "key"

    async def ask(self, answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> tuple[str, TrainerReport | None]:
        """What asking once comes to, where ``answer`` writes."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                await answer(writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._patch.setattr(probe, "PORT", server.sockets[0].getsockname()[1])
        try:
            return await self.probes._ask(TrainerPod("pod", "127.0.0.1"), "key")
        finally:
            server.close()
            await self.probes.close()


@pytest.fixture
async def stranger(monkeypatch: pytest.MonkeyPatch) -> Stranger:
    return Stranger(monkeypatch)


def body(content: bytes, *headers: str) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def write(writer: asyncio.StreamWriter) -> None:
        lines = ("HTTP/1.1 200 OK", f"Content-Length: {len(content)}", *headers)
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()

    return write


async def test_a_redirect_is_not_followed(stranger: Stranger) -> None:
    """Nor is the key sent to where it points."""

    async def elsewhere(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    assert await stranger.ask(elsewhere) == ("refused", None)


async def test_a_compressed_answer_is_not_unpacked(stranger: Stranger) -> None:
    """A user's 700 KB must not become gigabytes in the operator that all namespaces share."""
    packed = gzip.compress(b'{"phase": "Training"}' + b" " * 50_000_000)
    tracemalloc.start()
    result = await stranger.ask(body(packed, "Content-Encoding: gzip"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result == ("invalid", None)
    assert peak < 5_000_000


async def test_an_answer_without_end_is_left_at_the_limit(stranger: Stranger) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 500_000_000:
            writer.write(b" " * 1_000_000)
            await writer.drain()
            sent += 1_000_000

    assert await stranger.ask(endless) == ("invalid", None)
    assert sent < 50_000_000, "the connection was closed"


async def test_an_answer_drop_by_drop_has_a_total_deadline(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_SECONDS", 0.3)

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    assert await asyncio.wait_for(stranger.ask(drip), 30) == ("unreachable", None)


async def test_what_a_stranger_says_of_itself_is_short(stranger: Stranger) -> None:
    long = json.dumps({"phase": "Training", "message": "x\n" * 10_000, "policy": {"serving": "y" * 10_000}}).encode()
    result, report = await stranger.ask(body(long))
    assert result == "ok"
    assert report is not None
    assert len(report.message) <= MAX_TEXT
    assert len(report.policy.serving or "") <= MAX_TEXT
