"""The run folder: damaged files are made again, and --fresh deletes only what a run made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.jobs import job
from visionrl.job import Job
from visionrl.status import Attempt, JobStatus
from visionrl_core.decide import decide
from visionrl_core.manifests.common import Owner
from visionrl_core.observed import JobObject, Observed
from visionrl_local.folder import LocalError, LocalFolder
from visionrl_local.fresh import MADE_BY_RUNS, made_by_run, start_over
from visionrl_local.resume import resumed
from visionrl_trainer.state.runfolder import RunFolder

from tests.unit.local.test_resume import NOW  # isort: skip

STATUS = JobStatus(
    attempt=1,
    attempts=[Attempt(number=0, started="2026-01-01T00:00:00Z", ended="2026-01-01T01:00:00Z", cause="trainer: exit 1")],
    active_since="2026-01-01T01:00:00Z",
)

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "binary": lambda data: b"\xff\xfe\x00" * 20,
    "a list": lambda data: b"[]",
    "too deep": lambda data: b"[" * 100_000,
    "a time that is none": lambda data: data.replace(b"2026-01-01T", b"2026-13-41T"),
    "a time without a zone": lambda data: data.replace(b"00Z", b"00"),
    "a number without end": lambda data: data.replace(b'"activeSeconds": 0', b'"activeSeconds": 1' + b"0" * 30),
    "another version's word": lambda data: data.replace(b'"Pending"', b'"Dancing"'),
}


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    (tmp_path / "demo").mkdir()
    return LocalFolder(tmp_path / "demo")


def test_a_run_folder_that_vanishes_between_check_and_write_is_not_made_again(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "check", lambda: None)  # as if the folder were deleted right after it
    folder.root.rmdir()
    actions: list[Callable[[], object]] = [
        lambda: folder.write_status(STATUS),
        lambda: folder.write_key("k"),
        lambda: folder.write_job("{}"),
        lambda: folder.mount({"name": "config", "configMap": {}}),
        lambda: folder.mount({"name": "key", "secret": {}}),
    ]
    for action in actions:
        with pytest.raises(FileNotFoundError):
            action()
    assert not folder.root.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_status_is_made_again(folder: LocalFolder, damage: str) -> None:
    folder.write_status(STATUS)
    data = DAMAGES[damage](folder.status_file.read_bytes())
    assert data != folder.status_file.read_bytes()
    folder.status_file.write_bytes(data)
    notes: list[str] = []
    assert folder.status(notes.append) == JobStatus()
    assert "is damaged" in notes[0]
    assert "--fresh" not in notes[0]  # which would delete the checkpoints
    assert (folder.root / "status.json.damaged").read_bytes() == data
    assert folder.status(notes.append) == JobStatus()
    assert len(notes) == 1


@example(at=26733, bit=1)  # the year 26
@given(st.integers(0), st.integers(0, 7))
def test_whatever_bit_of_the_status_flips_the_run_continues(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    folder = LocalFolder(tmp_path_factory.mktemp("bits"))
    folder.write_status(STATUS)
    data = bytearray(folder.status_file.read_bytes())
    data[at % len(data)] ^= 1 << bit
    folder.status_file.write_bytes(data)
    status = resumed(folder.status(lambda _: None), job(), job(), NOW, NOW)
    if status is not None:
        owner = Owner("demo", "default", "local")
        document = job().model_dump(mode="json", by_alias=True)
        decide(JobObject(owner, 1, document), status, Observed(), NOW)


@pytest.mark.parametrize("damage", ["empty", "truncated", "binary", "a list", "too deep"])
def test_a_damaged_job_is_replaced_by_the_trainers_copy(folder: LocalFolder, damage: str) -> None:
    text = job({"training.groupSize": 5}).model_dump_json(by_alias=True)
    notes: list[str] = []
    assert folder.accepted(notes.append) is None
    folder.write_job(DAMAGES[damage](text.encode()).decode(errors="ignore"))
    assert folder.accepted(notes.append) is None
    assert "unchecked against the run's former one" in notes.pop()
    folder.trainers_job_file.write_text(text)
    accepted = folder.accepted(notes.append)
    assert accepted is not None
    assert accepted.spec.training.group_size == 5
    assert "config.json is used" in notes.pop()


def test_a_job_of_a_newer_version_is_read(folder: LocalFolder) -> None:
    folder.write_job(job().model_dump_json(by_alias=True).replace('"spec":{', '"spec":{"fieldOfTomorrow":1,', 1))
    assert isinstance(folder.accepted(pytest.fail), Job)


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xfe\x00", "schlüssel".encode(), b"a\x00b", b"x" * 2**25])
def test_a_key_that_cannot_be_used_is_none(folder: LocalFolder, data: bytes) -> None:
    assert folder.key() is None
    folder.write_key("a-key")
    assert folder.key() == "a-key"
    folder.key_file.write_bytes(data)
    assert folder.key() is None


def test_a_lock_file_with_anything_in_it_is_only_a_lock(folder: LocalFolder) -> None:
    folder.lock_file.write_bytes(b"\xff\x00" * 1000)
    with folder.lock(), pytest.raises(LocalError, match="in use by another"), LocalFolder(folder.root).lock():
        pytest.fail("locked twice")


def test_a_refused_run_leaves_no_folder_and_no_other_loses_one(folder: LocalFolder) -> None:
    with pytest.raises(LocalError, match="refused"), folder.lock():
        raise LocalError("refused")
    assert not folder.root.exists()
    with folder.lock():
        folder.write_key("a-key")
    assert folder.key() == "a-key"


def test_a_folder_that_is_deleted_or_replaced_is_noticed(folder: LocalFolder) -> None:
    with folder.lock():
        folder.check()
        folder.root.rename(folder.root.with_name("moved"))
        with pytest.raises(LocalError, match="was deleted or replaced"):
            folder.check()
        folder.root.mkdir()
        folder.lock_file.touch()
        with pytest.raises(LocalError, match="was deleted or replaced"):
            folder.check()
    assert folder.lock_file.exists(), "another's"


# --- fresh


def test_fresh_deletes_what_runs_made_and_nothing_else(folder: LocalFolder) -> None:
    trainer = RunFolder(folder.root)
    made = [path for path in vars(trainer).values() if isinstance(path, Path) and path != folder.root]
    for path in [*made, trainer.metrics.path, folder.log("trainer"), folder.root / "traces.db-wal"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made")
    folder.write_status(STATUS)
    (folder.root / ".status.json.4711").write_text("a draft of a killed process")
    thesis = folder.root / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    shown: list[str] = []

    assert not start_over(folder, shown.append, lambda: False)
    assert folder.status_file.exists()
    assert any(line.startswith("  checkpoints") for line in shown)
    assert "it keeps what no run made: thesis" in shown

    assert start_over(folder, shown.append, lambda: True)
    assert sorted(path.name for path in folder.root.iterdir()) == ["thesis", trainer.lock_file.name]
    assert (thesis / "chapter.tex").read_text() == "years of work"


def test_fresh_does_not_ask_where_there_is_nothing_to_delete(folder: LocalFolder) -> None:
    (folder.root / "notes.txt").touch()
    assert start_over(folder, pytest.fail, lambda: pytest.fail("asked"))


def test_fresh_refuses_a_folder_that_no_run_made(folder: LocalFolder) -> None:
    (folder.root / "logs").mkdir(parents=True)
    (folder.root / "logs" / "diary.txt").touch()
    with pytest.raises(LocalError, match=r"has logs, but no run made this folder"):
        made_by_run(folder)


def test_fresh_unlinks_a_link_and_leaves_what_it_points_to(folder: LocalFolder, tmp_path: Path) -> None:
    folder.write_status(STATUS)
    (tmp_path / "disk" / "000001").mkdir(parents=True)
    (folder.root / "checkpoints").symlink_to(tmp_path / "disk")
    assert start_over(folder, lambda _: None, lambda: True)
    assert not os.path.lexists(folder.root / "checkpoints")
    assert (tmp_path / "disk" / "000001").exists()


def test_the_mark_of_a_run_is_deleted_last() -> None:
    assert MADE_BY_RUNS[-3:] == ("status.json", "config.json", "job")
