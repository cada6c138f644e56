"""Evaluations beside the training: when one is due, what it leaves behind, and what its failure does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.support.jobs import job
from tests.support.until import until
from tests.unit.trainer.test_intake import decision, response
from visionrl.rollout import RolloutRequest, RolloutResponse
from visionrl.status import TrainerReport
from visionrl_trainer.evaluator import Evaluator
from visionrl_trainer.report.progress import Meter
from visionrl_trainer.rollout.client import RolloutRefused, TaskApp
from visionrl_trainer.state.background import BackgroundWriter
from visionrl_trainer.state.run import Evaluated, RunState
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.service import StatusPublisher
from visionrl_trainer.tracking import Trackers

VERSION = "demo-v000004-0123456789ab"
EVALUATED = Evaluated(version=VERSION, iteration=4)
SPEC = job({"evaluation": {"episodes": 3, "temperature": 0.5}, "rollout.policyConfig": {"topP": 0.9}}).spec


class Player(TaskApp):
    """Episodes that end when the test says so."""

    def __init__(self) -> None:
        self.requests: list[RolloutRequest] = []
        self.ends = asyncio.Event()
        self.refuses = False

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        self.requests.append(request)
        await self.ends.wait()
        if self.refuses:
            raise RolloutRefused("status 422: no such environment")
        return response([decision(unlocked=["collect_wood"])], score=float(request.env.seed))


class Scene:
    """An evaluator and what it writes to."""

    def __init__(self, root: Path) -> None:
        self.taskapp, self.folder, self.checkpoints = Player(), RunFolder(root), BackgroundWriter()
        self.publisher = StatusPublisher(TrainerReport(phase="Training"))
        tracked = job({"tracking": {"tensorboard": False}})
        self.evaluator = Evaluator(
            self.taskapp,
            "http://inference",
            frozenset({7}),
            self.folder,
            self.checkpoints,
            Meter(self.publisher, total=9),
            Trackers(tracked, root),
        )

    @property
    def results(self) -> list[dict[str, object]]:
        return self.folder.evaluations.records()


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async def no_film(*arguments: object) -> None:
        raise OSError("no film")

    monkeypatch.setattr("visionrl_trainer.evaluator.films.record", no_film)
    found = Scene(tmp_path)
    yield found
    await found.evaluator.close()
    await found.checkpoints.close()


async def test_it_plays_beside_and_keeps_the_result(scene: Scene) -> None:
    scene.evaluator.start(SPEC, EVALUATED)
    await until(lambda: len(scene.taskapp.requests) == 3)
    assert scene.evaluator.is_playing
    scene.evaluator.check()
    progress = scene.publisher.report.progress
    assert (progress.evaluation.played, progress.evaluation.seeds) == (0, 3)
    [first, *_] = scene.taskapp.requests
    config = first.policy.config
    assert (first.mode, config.model, config.temperature, config.top_p) == ("eval", VERSION, 0.5, 0.9)
    assert config.banned_token_ids == [7]
    scene.taskapp.ends.set()
    await scene.evaluator.finished()
    [result] = scene.results
    assert (result["iteration"], result["policy"], result["mean"]) == (4, VERSION, 1.0)
    progress = scene.publisher.report.progress
    assert progress.evaluation.latest is not None
    assert (progress.evaluation.latest_iteration, progress.evaluation.latest.mean) == (4, 1.0)
    assert (progress.evaluation.played, progress.evaluation.seeds) == (None, None)
    assert (progress.episodes, progress.episodes_per_minute) == (0, None), "those are of the training"
    assert not scene.evaluator.is_playing


async def test_a_result_waits_for_the_checkpoint_of_what_was_evaluated(scene: Scene) -> None:
    written = threading.Event()

    def write() -> None:
        written.wait()

    scene.checkpoints.start(write)
    scene.taskapp.ends.set()
    scene.evaluator.start(SPEC, EVALUATED)
    await until(lambda: len(scene.taskapp.requests) == 3)
    training = asyncio.create_task(scene.checkpoints.finished())  # it waits for the same write
    for _ in range(100):
        await asyncio.sleep(0)
    assert scene.results == []
    written.set()
    await asyncio.gather(training, scene.evaluator.finished())
    assert len(scene.results) == 1


async def test_what_fails_beside_the_training_ends_it(scene: Scene) -> None:
    scene.taskapp.refuses = True
    scene.taskapp.ends.set()
    scene.evaluator.start(SPEC, EVALUATED)
    await until(lambda: not scene.evaluator.is_playing)
    with pytest.raises(ExceptionGroup) as raised:
        scene.evaluator.check()
    assert raised.group_contains(RolloutRefused, match="no such environment")
    with pytest.raises(ExceptionGroup):
        await scene.evaluator.finished()
    assert scene.results == []


async def test_the_end_of_a_run_ends_it(scene: Scene) -> None:
    scene.evaluator.start(SPEC, EVALUATED)
    await asyncio.sleep(0)
    await scene.evaluator.close()
    assert not scene.evaluator.is_playing
    assert scene.results == []


@pytest.mark.parametrize(
    ("every", "recorded", "begun", "iteration", "due"),
    [
        (0, [], None, 0, True),  # before training
        (0, [], None, 3, True),  # switched on during a run
        (0, [], 0, 1, False),  # the first one is being played
        (0, [0], 0, 4, False),
        (0, [0], 0, 9, True),  # after training
        (0, [0, 9], 9, 9, False),
        (2, [0], 0, 4, True),
        (2, [0], 0, 3, False),
        (2, [0], 4, 4, False),
        (2, [0, 4], None, 4, False),  # a state of an earlier version names none
    ],
)
async def test_an_evaluation_is_due_once(
    scene: Scene, every: int, recorded: list[int], begun: int | None, iteration: int, due: bool
) -> None:
    for each in recorded:
        fields = ("mean", "low", "high", "episodes", "rates", "returns", "seeds")
        scene.folder.evaluations.append({"iteration": each, **dict.fromkeys(fields)})
    evaluated = None if begun is None else Evaluated(version=VERSION, iteration=begun)
    state = RunState(version=VERSION, iteration=iteration, evaluated=evaluated)
    spec = job({"evaluation": {"episodes": 3, "everyIterations": every}}).spec
    assert scene.evaluator.is_due(spec, state, total=9) is due
    assert not scene.evaluator.is_due(job({"evaluation.episodes": 0}).spec, state, total=9)
