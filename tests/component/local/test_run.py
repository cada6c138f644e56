"""``visionrl run`` with real processes that stand in for the components."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.component.local.conftest import MARK, Run, write_job
from visionrl.job import Metadata
from visionrl.jobfile import load_job
from visionrl_cli.places.machine import Machine
from visionrl_cli.places.place import PlaceError

Start = Callable[..., Run]


def test_a_job_runs_to_its_end_and_leaves_nothing_running(start: Start) -> None:
    run = start({}, "trainer=train:2")
    run.wait_for_phase("Running")
    end = run.wait_for(lambda event: event["event"] == "end")
    assert end["phase"] == "Complete"
    assert end["summary"]["iterations"] == 3
    assert run.end()[0] == 0
    assert run.processes() == []
    status = run.status()
    assert status["progress"]["iteration"] == 3
    assert [attempt["number"] for attempt in status["attempts"]] == [0]
    assert stat.S_IMODE((run.root / "secret" / "api-key").stat().st_mode) == 0o600
    assert "attempt 0" in (run.root / "logs" / "trainer.log").read_text()


def test_plain_output_shows_every_change_once_and_ends_with_the_summary(start: Start) -> None:
    run = start({}, "trainer=train:2", "--plain")
    assert run.end()[0] == 0
    assert sum("phase: Running" in line for line in run.lines) == 1
    assert any("iteration 3/3 · reward 1.50" in line for line in run.lines)
    assert "trainer: Completed" in run.output
    assert "training episodes" in run.output
    assert f"report:     {run.root / 'report.html'}" in run.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_the_next_run_resumes(start: Start, number: signal.Signals) -> None:
    run = start({}, "trainer=train:600", "inference=parent")
    run.wait_for_phase("Running")
    run.wait_for(lambda event: event.get("status", {}).get("progress", {}).get("iteration") == 3)
    run.process.send_signal(number)
    code, errors = run.end()
    assert code == 128 + number
    assert "resumes from" in errors
    assert run.processes() == []
    assert run.status()["attempts"][-1]["cause"] == "interrupted"

    again = start({}, "trainer=train:0")
    assert again.end()[0] == 0
    log = (again.root / "logs" / "trainer.log").read_text()
    assert "begins at iteration 3" in log
    assert "attempt 1" in log
    assert again.status()["restarts"] == 0


def test_killed_without_warning_it_leaves_nothing_and_resumes(start: Start) -> None:
    run = start({}, "trainer=train:600", "inference=parent")
    run.wait_for_phase("Running")
    run.process.kill()
    run.wait_until_gone()
    again = start({}, "trainer=train:0")
    assert again.end()[0] == 0
    assert again.status()["attempts"][0]["cause"] == "interrupted"


def test_a_second_signal_kills_what_ignores_the_first(start: Start) -> None:
    run = start({}, "trainer=train:600", "taskapp=stubborn")
    run.wait_for_phase("Running")
    run.process.send_signal(signal.SIGINT)
    run.wait_for(lambda event: event["event"] == "note" and "stopping" in event["text"])
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 130
    assert run.processes() == []


def test_a_failing_trainer_is_retried_and_the_end_says_why(start: Start) -> None:
    run = start({"failurePolicy.maxRestarts": 1}, "trainer=die:1")
    note = run.wait_for(lambda event: event["event"] == "note" and "trainer ended" in event["text"])
    assert "exit code 1" in note["text"]
    assert note["tail"][-1] == "the last word"
    assert len(note["tail"]) == 15
    code, _ = run.end()
    assert code == 1
    status = run.status()
    assert status["phase"] == "Failed"
    assert "the last word" in status["reason"]
    assert len(status["attempts"]) == 2
    assert run.processes() == []


def test_a_configuration_error_ends_the_job_at_once(start: Start) -> None:
    run = start({}, "inference=die:2")
    assert run.end()[0] == 1
    assert run.status()["reason"].startswith("inference: exit code 2")
    assert run.processes() == []


def test_a_server_that_dies_is_restarted(start: Start) -> None:
    run = start({}, "taskapp=once:1", "trainer=train:0")
    assert run.end()[0] == 0
    assert "restart 1" in (run.root / "logs" / "taskapp.log").read_text()


def test_a_server_that_is_never_ready_is_restarted(start: Start) -> None:
    run = start({"inference.startupTimeoutSeconds": 1}, "inference=unready")
    note = run.wait_for(lambda event: event["event"] == "note" and "inference ended" in event["text"])
    assert "Unhealthy" in note["text"]
    assert "no answer on /health within 1 s of the start" in note["tail"][-1]


def test_readiness_is_followed(start: Start) -> None:
    run = start({}, "inference=deaf", "trainer=train:600")
    run.wait_for_phase("Running")
    (run.root / "deaf").touch()
    event = run.wait_for(lambda event: not ready(event, "inference"))
    assert event["status"]["phase"] == "Running"
    (run.root / "deaf").unlink()
    run.wait_for(lambda event: ready(event, "inference"))


def ready(event: dict[str, object], component: str) -> bool:
    status = event.get("status", {"components": [{"name": component, "ready": True}]})
    return next(each["ready"] for each in status["components"] if each["name"] == component)  # type: ignore[index]


def test_two_runs_of_one_job_do_not_clash(start: Start) -> None:
    first = start({}, "trainer=train:600")
    first.wait_for_phase("Running")
    second = start({}, "trainer=train:0")
    code, errors = second.end()
    assert code == 1
    assert f"in use by another visionrl run (pid {first.process.pid})" in errors
    assert first.process.poll() is None


def test_a_taken_port_is_named(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, errors = start({}, f"--port={port}").end()
    assert code == 1
    assert f"port {port} for taskApp is in use" in errors


def test_another_specification_is_refused_until_fresh(start: Start) -> None:
    assert start({}, "trainer=train:0").end()[0] == 0
    code, errors = start({"training.learningRate": 0.5}, "trainer=train:0").end()
    assert code == 1
    assert "another spec.training.learningRate; --fresh starts over" in errors
    fresh = start({"training.learningRate": 0.5}, "trainer=train:0", "--fresh")
    assert fresh.end()[0] == 0
    assert "begins at iteration 0" in (fresh.root / "logs" / "trainer.log").read_text()


@pytest.mark.parametrize("storage", [{}, {"storage.ephemeral": True}], ids=["claim", "ephemeral"])
def test_a_complete_job_is_complete_and_continues_with_more_iterations(start: Start, storage: dict[str, Any]) -> None:
    """Its results are in the run folder, whatever volume it asks a cluster for."""
    first = start(storage, "trainer=train:0")
    assert first.end()[0] == 0
    [kept] = [each for each in first.status()["conditions"] if each["type"] == "ResultKept"]
    assert (kept["status"], kept["reason"], kept["message"]) == ("True", "RunFolder", str(first.root))
    again = start(storage, "trainer=die:1")
    assert again.end()[0] == 0
    more = start({"training.iterations": 5, **storage}, "trainer=train:0")
    assert more.end()[0] == 0
    assert "begins at iteration 3" in (more.root / "logs" / "trainer.log").read_text()
    assert (more.root / "checkpoints" / "iteration").read_text() == "5"


def test_the_job_file_is_followed_while_it_runs(start: Start, tmp_path: Path) -> None:
    run = start({}, "trainer=train:600")
    run.wait_for_phase("Running")
    write_job(tmp_path / "job.yaml", {"training.iterations": 6, "training.groupSize": 3})
    event = run.wait_for(lambda event: event.get("status", {}).get("observedGeneration") == 2)
    accepted = event["status"]["conditions"][0]
    assert accepted["reason"] == "Immutable"
    assert "spec.training.groupSize" in accepted["message"]
    run.wait_for(lambda event: event.get("status", {}).get("progress", {}).get("iteration") == 6)
    (tmp_path / "job.yaml").write_text("spec: [")
    note = run.wait_for(lambda event: event["event"] == "note")
    assert "the changed job file is not used" in note["text"]


def test_a_suspended_job_holds_no_process_and_resumes(start: Start, tmp_path: Path) -> None:
    endless = {"training.iterations": 100_000}  # it cannot be complete before it is suspended
    run = start(endless, "trainer=train:0")
    run.wait_for_phase("Running")
    write_job(tmp_path / "job.yaml", {**endless, "suspend": True})
    run.wait_for(lambda event: event.get("status", {}).get("reason") == "suspended")
    assert [pid for pid in run.processes() if pid != run.process.pid] == []
    write_job(tmp_path / "job.yaml", {"suspend": False})
    assert run.end()[0] == 0


def test_only_the_components_get_the_key(start: Start) -> None:
    run = start({}, "trainer=train:0")
    run.end()
    key = (run.root / "secret" / "api-key").read_text()
    assert len(key) > 30
    assert key not in run.output
    assert not any(key in path.read_text(errors="ignore") for path in run.root.rglob("*") if path.name != "api-key"
                   and path.is_file())  # fmt: skip


def test_gpus_that_are_not_there_are_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    code, errors = start({"inference.gpu": {}, "trainer.gpu": {}}).end()
    assert code == 1
    assert "asks for 2 GPUs (spec.inference.gpu 1, spec.trainer.gpu 1), this machine offers 0" in errors


def test_ctrl_c_on_a_terminal_ends_everything(tmp_path: Path) -> None:
    file = write_job(tmp_path / "job.yaml", {})
    words = [str(file), str(tmp_path), "--plain", "trainer=train:600"]
    command = [sys.executable, "-m", "tests.support.local_run", *words]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    shown = ""
    while "iteration 3/3" not in shown:
        shown += os.read(terminal, 65536).decode(errors="replace")
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # Linux ends a closed terminal with EIO
        while data := os.read(terminal, 65536):
            shown += data.decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert "Running" in shown
    assert "listening, serve" in shown
    assert "resumes from" in shown


def test_the_verbs_about_jobs_end_continue_and_cancel_a_run(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start({}, "trainer=train:600")
    run.wait_for_phase("Running")
    monkeypatch.setenv(MARK, run.mark)  # what is started here is found and ended like the rest
    words = [sys.executable, "-m", "tests.support.local_run"]
    machine = Machine(tmp_path / "runs", lambda file, runs: [*words, str(file), str(runs), "trainer=train:600"])
    with pytest.raises(PlaceError, match="runs already"):
        machine.resume("demo")
    run.wait_until("the status is written", lambda: machine.job("demo").phase == "Running")

    machine.suspend("demo")
    run.wait_until_gone()
    assert machine.job("demo").phase == "Suspended"

    machine.resume("demo")
    run.wait_until("the job runs again", lambda: machine.job("demo").phase == "Running")
    machine.cancel("demo")
    run.wait_until_gone()
    assert machine.job("demo").phase == "Cancelled"

    file = write_job(tmp_path / "other.yaml", {})
    machine.submit(load_job(file).model_copy(update={"metadata": Metadata(name="other")}))
    run.wait_until("it runs", lambda: machine.job("other").phase == "Running")
    assert len(machine.jobs()) == 2
    machine.cancel("other")
    run.wait_until_gone()
