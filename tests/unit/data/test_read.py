"""Databases that are damaged, cut off or something else; disks that are full."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visionrl.data.config import FilterError, make_config
from visionrl.data.filter import filter_traces
from visionrl.data.read import TraceDatabase
from visionrl.data.write import Draft
from visionrl_taskapp.rollouts.traces import _connect

METADATA = {"env_name": "crafter", "seed": 7, "policy_name": "crafter-react", "tools": [], "abort_reason": None}
CALL = {
    "input_messages": [{"role": "user", "content": "look"}],
    "output_message": {"role": "assistant", "content": "do"},
    "label": None,
    "error": None,
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    "model_name": "m",
}


def database(folder: Path, episodes: int = 1, metadata: Any = METADATA, call: Any = CALL) -> Path:
    """A traces.db with one decision an episode, each on a seed of its own."""
    path = folder / "traces.db"
    connection = _connect(path)
    for number in range(episodes):
        name, told = f"run/{number}", {**metadata, "seed": number} if episodes > 1 else metadata
        connection.execute("INSERT INTO session_traces VALUES (?, '2026', 1, 2, 2, ?)", (name, json.dumps(told)))
        connection.execute("INSERT INTO outcome_rewards VALUES (NULL, ?, 2.0, 2, 4, '{}')", (name,))
        step = connection.execute(
            "INSERT INTO session_timesteps VALUES (NULL, ?, 'turn-0', 0, 0, '2026', '{}')", (name,)
        ).lastrowid
        for kind, content in (("llm_call", {**call, "session": number}), ("environment", {"actions": ["do"]})):
            connection.execute(
                "INSERT INTO events VALUES (NULL, ?, ?, ?, '2026', 'm', 3, 1, 0.0, 0.0, 0, ?)",
                (name, step, kind, json.dumps(content)),
            )
    connection.close()
    return path


def settings(path: Path, **sft: Any) -> Any:
    chosen = {"deduplicate": False, **sft}
    return make_config({"filter": {"input_db": str(path), "output_dir": str(path.parent / "out")}, "sft": chosen}, "t")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_text("no database at all, but long enough to be asked " * 100)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE session_traces (id INTEGER)")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "is cut off or damaged"),
        (overwrite, "is not a SQLite file"),
        (foreign, "is not a traces.db: it has no table session_timesteps"),
        (Path.unlink, "no such file"),
        (lambda path: path.write_bytes(b""), "is not a traces.db"),
    ],
)
def test_a_file_that_is_no_whole_traces_db_is_told(tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    path = database(tmp_path, episodes=400)
    harm(path)
    with pytest.raises(FilterError, match=message) as refused:
        filter_traces(settings(path))
    assert str(path) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_a_database_but_may_hold_one(tmp_path: Path) -> None:
    path = database(tmp_path)
    with pytest.raises(FilterError, match=f"there is {path}"):
        TraceDatabase(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metadata": {**METADATA, "seed": "7"}}, "episode run/0 is not as the task app writes it: its seed is '7'"),
        ({"metadata": {"seed": 7}}, "it has no 'env_name'"),
        ({"call": {**CALL, "output_message": {"content": None}}}, "turn 0 has an answer or an image that is not text"),
        ({"call": {name: CALL[name] for name in CALL if name != "usage"}}, "it has no 'usage'"),
    ],
)
def test_an_episode_of_another_kind_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(FilterError, match=message):
        filter_traces(settings(database(tmp_path, **content)))


def test_nothing_left_writes_nothing_and_says_why(tmp_path: Path) -> None:
    path = database(tmp_path, call={**CALL, "error": "no call"})
    with pytest.raises(FilterError, match=r"nothing was written: dropped 1 decisions \(invalid tool call\)"):
        filter_traces(settings(path))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path, episodes=20)
    filter_traces(settings(path))
    out = tmp_path / "out"
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert before.keys() == {"train.jsonl", "val.jsonl", "stats.json"}
    original = Draft.document

    def full(self: Draft, name: str, value: dict[str, Any]) -> None:
        original(self, name, value)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Draft, "document", full)
    with pytest.raises(FilterError, match="out cannot be written: No space left on device"):
        filter_traces(settings(path, shuffle=False))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_task_app_may_still_write_while_it_is_read(tmp_path: Path) -> None:
    path = database(tmp_path, episodes=3)
    writer = _connect(path)
    writer.execute("DELETE FROM session_traces WHERE session_id = 'run/2'")
    assert path.with_name("traces.db-wal").exists()
    assert filter_traces(settings(path)).episodes.read == 2
    writer.close()


def test_one_seed_cannot_be_split_and_that_is_said(tmp_path: Path) -> None:
    stats = filter_traces(settings(database(tmp_path)))
    assert (stats.train.lines, stats.val.lines) == (1, 0)
    assert "validation is empty: all episodes are on one environment seed, which cannot be split" in stats.warnings
    assert (tmp_path / "out" / "val.jsonl").read_bytes() == b""


def test_seeds_of_evaluations_are_warned_of(tmp_path: Path) -> None:
    [warning, _] = filter_traces(settings(database(tmp_path))).warnings
    assert "seeds below 1000000, which evaluations use" in warning
    (tmp_path / "traces.db").unlink()
    path = database(tmp_path, metadata={**METADATA, "seed": 1_000_000})
    assert "evaluations" not in str(filter_traces(settings(path)).warnings)


def test_a_limit_keeps_the_first_lines(tmp_path: Path) -> None:
    path = database(tmp_path, episodes=5)
    config = settings(path)
    limited = config.model_copy(update={"filter": config.filter.model_copy(update={"limit": 3})})
    seen: list[tuple[int, int]] = []
    stats = filter_traces(limited, lambda done, total: seen.append((done, total)))
    assert stats.train.lines + stats.val.lines == 3
    assert stats.episodes.read == 3
    assert seen[-1] == (5, 5)


def test_nesting_without_end_is_told(tmp_path: Path) -> None:
    path = database(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE session_traces SET metadata = ?", ("[" * 100_000,))
    with pytest.raises(FilterError, match="not as the task app writes it: is nested more than 64 levels deep"):
        filter_traces(settings(path))
