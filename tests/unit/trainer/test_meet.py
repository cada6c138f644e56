"""What the trainer asks of a task app before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.support.jobs import job
from visionrl.component import ConfigurationError
from visionrl.status import TrainerReport
from visionrl_trainer.rollout import meet as meeting
from visionrl_trainer.rollout.client import RolloutRefused, TaskApp
from visionrl_trainer.rollout.meet import meet, mismatch
from visionrl_trainer.sync.service import StatusPublisher

URL = "http://lamp:8000"
ELSEWHERE = {"taskApp.url": URL, "taskApp.keySecret": {"name": "lamp", "key": "key"}, "rollout.envName": "lamp"}
STATES = {"algorithm.advantage": "state_anchored"}


class Answering(TaskApp):
    """One whose answers are given, one after the other."""

    def __init__(self, *answers: Mapping[str, Any] | Exception) -> None:
        self.answers = list(answers)

    async def task_info(self) -> Mapping[str, Any]:
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "RETRY_SECONDS", 0.0)


async def test_a_server_that_is_not_there_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = StatusPublisher(TrainerReport(phase="Starting"))
    said = []
    monkeypatch.setattr(publisher, "update", lambda **changes: said.append(changes))
    await meet(Answering(ConnectionError("refused"), {"environment": "lamp"}), job(ELSEWHERE).spec, publisher)
    assert said == [{"message": f"waits for {URL}: refused"}, {"task_app_ready": True, "message": ""}]


async def test_a_server_that_never_comes_is_another_attempts_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(ConnectionError, match=f"{URL} does not answer: refused"):
        await meet(
            Answering(ConnectionError("refused")), job(ELSEWHERE).spec, StatusPublisher(TrainerReport(phase="Starting"))
        )


@pytest.mark.parametrize(
    ("changes", "told", "message"),
    [
        (ELSEWHERE, RolloutRefused("status 401"), "spec.taskApp: http://lamp:8000 refuses the trainer: status 401"),
        (ELSEWHERE, {"environment": "chess"}, "spec.rollout.envName: is lamp, but http://lamp:8000 plays chess"),
        ({**ELSEWHERE, **STATES}, {"environment": "lamp", "deterministic": False}, "spec.algorithm.advantage"),
        # A server of a user's own image, which knows nothing of the job's algorithm.
        (STATES, {"environment": "lamp", "deterministic": False}, "spec.algorithm.advantage"),
        (STATES, {"environment": "lamp", "deterministic": None}, "spec.algorithm.advantage"),
    ],
)
async def test_what_cannot_be_the_jobs_ends_it_with_the_field(
    changes: dict[str, Any], told: Mapping[str, Any] | Exception, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await meet(Answering(told), job(changes).spec, StatusPublisher(TrainerReport(phase="Starting")))


async def test_a_task_app_that_the_job_starts_is_asked_nothing() -> None:
    await meet(Answering(), job().spec, StatusPublisher(TrainerReport(phase="Starting")))


def test_a_server_that_says_nothing_of_determinism_promises_it() -> None:
    assert mismatch({"environment": "lamp"}, job({**ELSEWHERE, **STATES}).spec) is None
