"""What a terminal shows of a run, at every width."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from visionrl.job import Evaluation
from visionrl.status import (
    ComponentStatus,
    EvaluationProgress,
    JobStatus,
    PolicyVersions,
    Progress,
    Score,
    TrainerReport,
)
from visionrl_local.folder import LocalFolder
from visionrl_local.view import LiveView, PlainView, choose_view, last_event
from visionrl_trainer.report.progress import Meter, evaluations_left
from visionrl_trainer.sync.service import StatusPublisher

STATUS = JobStatus(
    phase="Running",
    reason="iteration 4: learning from 64 episodes",
    components=[
        ComponentStatus(name="taskApp", ready=True),
        ComponentStatus(
            name="inference", ready=False, restarts=2, message="CrashLoopBackOff: exit code 1, again in 10 s"
        ),
        ComponentStatus(name="trainer", ready=True),
    ],
    progress=Progress(iteration=3, total=10, reward=2.31, episodes_per_minute=84.2, eta="2026-01-01T12:00:00Z"),
    policy=PolicyVersions(serving="crafter-tiny-v000003-0a1b2c3d4e5f"),
)
LOGS = {
    "taskapp": "2026-01-01 10:00:00,123 INFO episode s7: 3 achievements in 10 turns " + "x" * 300,
    "inference": "INFO 01-01 10:00:00 [engine.py:12] loaded adapter v3\n"
    + 'INFO:     127.0.0.1:4242 - "GET /health HTTP/1.1" 200 OK\n' * 20,
    "trainer": "2026-01-01 10:00:00,123 INFO iteration 3/10: 2.31 achievements",
}


def shown(tmp_path: Path, width: int) -> list[str]:
    folder = LocalFolder(tmp_path / "demo")
    (folder.root / "logs").mkdir(parents=True)
    for name, text in LOGS.items():
        (folder.root / "logs" / f"{name}.log").write_text(text)
    console = Console(file=io.StringIO(), width=width, height=40)
    view = LiveView("demo", folder, console)
    view.status(STATUS)
    with console.capture() as captured:
        console.print(view._render())
    view.close()
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_each_component_is_seen_with_its_state_and_its_last_event(tmp_path: Path, width: int) -> None:
    lines = shown(tmp_path, width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for name, state, event in (
        ("taskApp", "ready", "episode s7: 3 achievements"),
        ("inference", "CrashLoopBackOff", "loaded adapter v3"),
        ("trainer", "ready", "iteration 3/10: 2.31"),
    ):
        row = next(index for index, line in enumerate(lines) if line.startswith(name))
        assert state in lines[row]
        assert event in "\n".join(lines[row : row + 2])
    assert "GET /health" not in text
    assert "2.31" in text


def test_one_line_per_iteration_stays(tmp_path: Path) -> None:
    output = io.StringIO()
    view = LiveView("demo", LocalFolder(tmp_path), Console(file=output, width=200))
    for iteration in (1, 1, 2):
        view.status(STATUS.model_copy(update={"progress": Progress(iteration=iteration, total=10, reward=1.5)}))
    view.close()
    lines = [line for line in output.getvalue().splitlines() if "reward 1.50" in line]
    assert [line.split(" · ")[0].split(" ", 1)[1] for line in lines][:2] == ["iteration 1/10", "iteration 2/10"]


def test_a_dumb_terminal_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_view("demo", LocalFolder(tmp_path), as_json=False), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    view = choose_view("demo", LocalFolder(tmp_path), as_json=False)
    view.close()
    assert isinstance(view, LiveView)


@pytest.mark.parametrize(
    ("lines", "event"),
    [
        ([], ""),
        (["", "  "], ""),
        (["2026-01-01 10:00:00,123 INFO loaded"], "loaded"),
        (["INFO 07-01 10:00:00 [core.py:12] loaded"], "loaded"),
        (["(EngineCore pid=12) INFO 07-01 10:00:00 [gpu/core.py:12] loaded"], "loaded"),
        (["\x1b[32mINFO\x1b[0m: done", '10.0.0.1:1 - "POST /v1/chat HTTP/1.1" 200'], "done"),
        (["2026-01-01 10:00:00,123 WARNING not yet"], "WARNING not yet"),
        (["INFO HTTP Request: GET http://x/status"], ""),
    ],
)
def test_the_last_event_is_no_access_log(lines: list[str], event: str) -> None:
    assert last_event(lines) == event


@pytest.mark.parametrize(
    ("every", "episodes", "done", "left"),
    [(0, 8, 3, 1), (0, 0, 3, 0), (5, 8, 3, 2), (5, 8, 5, 2), (5, 8, 6, 1), (5, 8, 10, 1), (3, 8, 1, 4)],
)
def test_evaluations_that_are_due_until_the_end(every: int, episodes: int, done: int, left: int) -> None:
    assert evaluations_left(Evaluation(every_iterations=every, episodes=episodes), done, 10) == left


@pytest.mark.parametrize(
    ("every", "evaluation_hours", "hours"),
    [
        (0, 1.0, 5.0 + 1.0),
        (5, 1.0, 5.0 + 1.0),  # the one at 5 is over before the training
        (2, 3.0, 5.0 + 2 * (3.0 - 2.0) + 3.0),  # those at 6 and 8 are waited for
    ],
)
def test_the_expected_end_counts_evaluations(every: int, evaluation_hours: float, hours: float) -> None:
    meter = Meter(StatusPublisher(TrainerReport(phase="Training")), total=10)
    score = Score(mean=1.0, low=0.5, high=1.5, episodes=8)
    evaluation = Evaluation(every_iterations=every, episodes=8)
    meter.evaluation(0, score, 3600.0 * evaluation_hours)
    for done, seconds in ((3, 3600.0), (4, 1800.0), (5, 5400.0)):  # the last shared the server with an evaluation
        meter.iteration(done, 10, seconds, evaluation)
    assert meter.progress.eta is not None
    left = datetime.fromisoformat(meter.progress.eta) - datetime.now(UTC)
    assert timedelta(hours=hours - 0.1) < left < timedelta(hours=hours + 0.1)
    meter.iteration(10, 10, 3600.0, evaluation)
    assert meter.progress.eta is not None
    meter.evaluation(10, score, 1.0)
    assert meter.progress.eta is None
    assert meter.progress.evaluation == EvaluationProgress(before=score, latest=score, latest_iteration=10)
