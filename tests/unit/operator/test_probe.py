"""Trainers' reports: a new phase at once, progress at intervals, and never another trainer's."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from visionrl.status import Progress, TrainerReport
from visionrl_operator import probe
from visionrl_operator.observe import TrainerPod
from visionrl_operator.probe import Probes
from visionrl_operator.store import Key

DEMO = Key("default", "demo")
POD = TrainerPod("pod-1", "10.0.0.1")


class Trainer:
    """Answers as the test says; ``changed`` holds the jobs that there was something to show of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pause: float = 0.001) -> None:
        self.report = TrainerReport(phase="Starting")
        self.status, self.asked, self.keys_read = 200, 0, 0
        self.key = "right"
        self.changed: asyncio.Queue[Key] = asyncio.Queue()
        monkeypatch.setattr(probe, "SHORTEST_PAUSE", pause)
        monkeypatch.setattr(probe, "LONGEST_PAUSE", pause)
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        self.probes = Probes(self.read_key, self.changed.put_nowait, client=client)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        assert request.url.path == "/status"
        assert request.url.port == 8000
        if request.headers["Authorization"] != f"Bearer {self.key}":
            return httpx.Response(401)
        return httpx.Response(self.status, text=self.report.model_dump_json(by_alias=True))

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
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return Trainer(monkeypatch)


async def test_a_new_phase_shows_at_once(trainer: Trainer) -> None:
    trainer.probes.follow(DEMO, POD)
    assert (await trainer.next_change()).phase == "Starting"
    trainer.report = TrainerReport(phase="Training")
    assert (await trainer.next_change()).phase == "Training"
    await trainer.probes.close()


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
    await trainer.probes.close()


async def test_another_pod_starts_with_a_clean_sheet(trainer: Trainer) -> None:
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.status = 503
    trainer.probes.follow(DEMO, TrainerPod("pod-2", "10.0.0.2"))
    assert trainer.probes.report(DEMO) is None
    await trainer.asked_more()
    assert trainer.probes.report(DEMO) is None
    await trainer.probes.close()


async def test_the_last_report_stays_when_the_pod_has_ended(trainer: Trainer) -> None:
    trainer.report = TrainerReport(phase="Complete")
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.probes.follow(DEMO, TrainerPod("pod-1", None))
    asked = trainer.asked
    await asyncio.sleep(0.02)
    assert trainer.asked == asked
    report = trainer.probes.report(DEMO)
    assert report is not None
    assert report.phase == "Complete"
    trainer.probes.follow(DEMO, None)
    assert trainer.probes.report(DEMO) is None


async def test_a_changed_key_is_read_again(trainer: Trainer) -> None:
    trainer.probes.follow(DEMO, POD)
    await trainer.next_change()
    trainer.key = "another"
    trainer.report = TrainerReport(phase="Training")
    assert (await trainer.next_change()).phase == "Training"
    assert trainer.keys_read == 2
    await trainer.probes.close()


async def test_following_again_starts_no_second_task(trainer: Trainer) -> None:
    for _ in range(5):
        trainer.probes.follow(DEMO, POD)
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "probe default/demo"]
    assert len(tasks) == 1
    await trainer.probes.close()
