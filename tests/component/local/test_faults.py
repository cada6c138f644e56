"""``visionrl run`` when things go wrong around it: kills, freezes, damaged files, a folder that vanishes."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.component.local.conftest import Event, Run, write_job

Start = Callable[..., Run]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


def ready_again(run: Run, component: str, restarts: int) -> Callable[[Event], bool]:
    def holds(event: Event) -> bool:
        found = {each["name"]: each for each in event.get("status", {}).get("components", [])}
        return component in found and found[component]["ready"] and found[component]["restarts"] >= restarts

    return holds


# --- whose the folder is


def test_no_trainer_starts_while_one_of_a_killed_run_lives(start: Start) -> None:
    """Its components ignore SIGTERM: they would live for the whole grace period, and write into the same folder."""
    run = start({}, "trainer=stubborn", "taskapp=stubborn")
    run.wait_for_phase("Running")
    run.process.kill()
    run.process.wait()
    old = run.processes()
    assert old
    again = start({}, "trainer=train:600")
    note = again.wait_for(lambda event: event["event"] == "note")
    assert "its processes have been ended" in note["text"]
    again.wait_for_phase("Running")
    assert alive(old) == []


def test_a_killed_guard_leaves_no_children(start: Start) -> None:
    run = start({}, "inference=parent", "trainer=train:600")
    run.wait_for_phase("Running")
    before = [
        pid for pid in run.processes() if pid not in (run.process.pid, run.guard("trainer"), run.guard("taskApp"))
    ]
    family = [pid for pid in before if pid not in (run.component("trainer"), run.component("taskApp"))]
    assert len(family) == 4  # guard, server, its child and grandchild
    os.kill(run.guard("inference"), signal.SIGKILL)
    run.wait_until("the family is gone", lambda: not alive(family))
    run.wait_for(ready_again(run, "inference", restarts=1))
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 130
    assert run.processes() == []


def test_a_frozen_guard_does_not_keep_a_run_from_ending(start: Start) -> None:
    run = start({}, "inference=parent", "trainer=train:600")
    run.wait_for_phase("Running")
    os.kill(run.guard("inference"), signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    run.wait_for(lambda event: event["event"] == "note" and "stopping" in event["text"])
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 130
    assert run.processes() == []


def test_a_run_whose_folder_is_deleted_ends_and_does_not_make_it_again(start: Start) -> None:
    run = start({}, "trainer=train:600", "taskapp=stubborn")
    run.wait_for(lambda event: event.get("status", {}).get("progress", {}).get("iteration") == 3)
    while run.root.exists():
        shutil.rmtree(run.root, ignore_errors=True)  # it is being written to
    code, errors = run.end()
    assert code == 1
    assert f"{run.root} was deleted or replaced while the job ran" in errors
    assert run.processes() == []
    assert not run.root.exists()


def test_two_runs_do_not_share_a_gpu(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"GPU-{uuid.uuid4()}")
    run = start({"trainer.gpu": {}}, "trainer=train:600")
    run.wait_for_phase("Running")
    other = Run(tmp_path / "other", tmp_path / "job.yaml", ())
    code, errors = other.end()
    assert code == 1
    assert f"is used by another visionrl run (pid {run.process.pid})" in errors
    run.process.kill()
    run.process.wait()
    third = Run(tmp_path / "other", tmp_path / "job.yaml", ("trainer=train:0",))
    assert third.end()[0] == 0


# --- what hangs


def test_frozen_processes_are_found_and_restarted(start: Start) -> None:
    """The trainer answers nothing any more; of inference a child is frozen, and its server answers as before."""
    run = start({}, "inference=parent", "trainer=train:600")
    run.wait_for_phase("Running")
    server, trainer = run.component("inference"), run.component("trainer")
    known = [pid for pid in run.processes() if b"time.sleep(600)" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in (*known, trainer):
        os.kill(pid, signal.SIGSTOP)
    notes = [run.wait_for(lambda event: event["event"] == "note" and "ended" in event["text"]) for _ in range(2)]
    assert sorted(note["text"].split()[0] for note in notes) == ["inference", "trainer"]
    assert all("NoProgress" in note["text"] and "SIGSTOP" in note["tail"][-1] for note in notes)
    assert alive([*known, server, trainer]) == []
    run.wait_for(lambda event: event.get("status", {}).get("attempt") == 1 and event["status"]["phase"] == "Running")
    run.wait_for(ready_again(run, "inference", restarts=1))


def test_a_trainer_that_reports_nothing_new_has_failed_after_its_deadline(start: Start) -> None:
    changes = {"lifecycle.progressDeadlineSeconds": 3, "failurePolicy.maxRestarts": 0}
    run = start(changes, "trainer=serve")
    assert run.end()[0] == 1
    assert "nothing new for 3 s" in run.status()["reason"]
    assert run.processes() == []


# --- damaged files


def test_a_run_continues_with_every_file_of_the_executor_damaged(start: Start) -> None:
    run = start({}, "trainer=train:600")
    run.wait_for(lambda event: event.get("status", {}).get("progress", {}).get("iteration") == 3)
    run.process.send_signal(signal.SIGINT)
    run.end()
    for name in ("status.json", "job/job.json", "secret/api-key", ".lock"):
        (run.root / name).write_bytes(b"\xff\xfe\x00 damaged")
    again = start({}, "trainer=train:0")
    assert again.end()[0] == 0
    assert "begins at iteration 3" in (again.root / "logs" / "trainer.log").read_text()
    assert again.status()["phase"] == "Complete"
    assert "training resumes from its last checkpoint" in again.output
    assert "--fresh" not in again.output


def test_files_that_components_read_are_repaired_while_it_runs(start: Start) -> None:
    run = start({}, "trainer=train:600")
    run.wait_for_phase("Running")
    key, job = run.root / "secret" / "api-key", run.root / "job" / "job.json"
    before = key.read_text(), job.read_text()
    key.write_bytes(b"")
    job.unlink()
    run.wait_until("the files are as before", lambda: job.exists() and (key.read_text(), job.read_text()) == before)


def test_a_status_that_cannot_be_written_ends_no_run(start: Start) -> None:
    run = start({}, "trainer=train:3")
    run.wait_for_phase("Running")
    status = run.root / "status.json"
    while not status.is_dir():  # it may be written just now
        status.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            status.mkdir()
    note = run.wait_for(lambda event: event["event"] == "note")
    assert "status.json: Is a directory; trying again" in note["text"]
    assert run.end()[0] == 0
    assert run.output.count("trying again") == 1
    assert start({}, "trainer=train:0").end()[0] == 0


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{former}'] * 9)}]\n" for former, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""436 bytes that stand for 400 million values."""


@pytest.mark.parametrize(
    "damage",
    [lambda text: text + BOMB, lambda text: "\0garbage", lambda text: "", lambda text: text + "x: " + "[" * 100_000],
    ids=["bomb", "garbage", "empty", "too deep"],
)
def test_a_job_file_that_cannot_be_read_is_left_out_and_noted_once(
    start: Start, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    run = start({}, "trainer=train:600")
    run.wait_for_phase("Running")
    file = tmp_path / "job.yaml"
    file.write_text(damage(file.read_text()))
    note = run.wait_for(lambda event: event["event"] == "note")
    assert "the changed job file is not used" in note["text"]
    write_job(file, {"training.iterations": 6})
    run.wait_for(lambda event: event.get("status", {}).get("progress", {}).get("iteration") == 6)
    assert run.output.count("the changed job file is not used") == 1


# --- fresh


@pytest.mark.parametrize("answer", ["n", "y"])
def test_fresh_names_what_it_deletes_and_asks_on_a_terminal(start: Start, tmp_path: Path, answer: str) -> None:
    run = start({}, "trainer=train:0")
    assert run.end()[0] == 0
    (run.root / "thesis.tex").write_text("years of work")
    file = write_job(tmp_path / "job.yaml", {})
    command = [sys.executable, "-m", "tests.support.local_run", str(file), str(run.root.parent), "--fresh", "--plain",
               "trainer=train:0"]  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, {**os.environ, "TERM": "xterm"})
    shown = ""
    while "[y/N]" not in shown:
        shown += os.read(terminal, 65536).decode(errors="replace")
    assert "checkpoints/  1 files" in shown
    assert "it keeps what no run made: thesis.tex" in shown
    os.write(terminal, f"{answer}\n".encode())
    try:
        while data := os.read(terminal, 65536):
            shown += data.decode(errors="replace")
    except OSError:
        pass  # Linux ends a closed terminal with EIO
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert (run.root / "thesis.tex").read_text() == "years of work"
    log = (run.root / "logs" / "trainer.log").read_text()
    if answer == "n":
        assert (code, "nothing was deleted" in shown, log.count("begins")) == (1, True, 1)
    else:
        assert (code, "begins at iteration 0" in log, log.count("begins")) == (0, True, 1)
