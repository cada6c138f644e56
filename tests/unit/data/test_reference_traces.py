"""The reference system's trace databases become supervised data."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionrl.data.config import FilterError, make_config
from visionrl.data.filter import filter_traces
from visionrl.data.reference_traces import open_traces
from visionrl.tools import tool_call_text
from visionrl_trainer.sft.file import read_sft

SCHEMA = """
CREATE TABLE session_traces (session_id VARCHAR PRIMARY KEY, created_at DATETIME, num_timesteps INTEGER,
    num_events INTEGER, num_messages INTEGER, metadata TEXT, experiment_id VARCHAR, embedding VECTOR);
CREATE TABLE session_timesteps (id INTEGER PRIMARY KEY, session_id VARCHAR, step_id VARCHAR, step_index INTEGER,
    turn_number INTEGER, started_at DATETIME, completed_at DATETIME, num_events INTEGER, num_messages INTEGER,
    step_metadata TEXT);
CREATE TABLE events (id INTEGER PRIMARY KEY, session_id VARCHAR, timestep_id INTEGER, event_type VARCHAR,
    call_records TEXT, reward FLOAT, metadata TEXT);
CREATE TABLE messages (id INTEGER PRIMARY KEY, session_id VARCHAR, content TEXT);
CREATE TABLE outcome_rewards (id INTEGER PRIMARY KEY, session_id VARCHAR, total_reward INTEGER,
    achievements_count INTEGER, total_steps INTEGER, created_at DATETIME, reward_metadata TEXT);
"""
TOOLS = [{"type": "function", "function": {"name": "interact_many", "parameters": {}}}]


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def record(shade: int, arguments: str = '{"actions": ["move_left", "do"]}', **changes: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(png(shade)).decode()}"
    return {
        "model_name": "gpt-4o-mini",
        "request_params": {"raw_params": {"tools": TOOLS}},
        "input_messages": [
            {"role": "system", "parts": [{"type": "text", "text": "Play."}]},
            {"role": "user", "parts": [{"type": "text", "text": "Look:"}, {"type": "image", "uri": url}]},
        ],
        "output_text": "",
        "output_tool_calls": [{"name": "interact_many", "arguments_json": arguments}],
        "usage": {"input_tokens": 90, "output_tokens": 10},
        **changes,
    }


def database(folder: Path, episodes: list[list[dict[str, Any]]], seed: Any = 0) -> Path:
    path = folder / "rollouts.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA)
        for number, records in enumerate(episodes):
            name = f"run-{number}"
            metadata = {
                "env_name": "crafter",
                "policy_name": "crafter-react",
                "seed": None if seed is None else number,
            }
            insert = "INSERT INTO session_traces VALUES (?, '2025', 1, 1, 1, ?, NULL, NULL)"
            connection.execute(insert, (name, json.dumps(metadata)))
            connection.execute("INSERT INTO outcome_rewards VALUES (NULL, ?, 2, 2, 4, '2025', '{}')", (name,))
            for turn, each in enumerate(records):
                step = connection.execute(
                    "INSERT INTO session_timesteps VALUES (NULL, ?, ?, ?, ?, NULL, NULL, 1, 1, '{}')",
                    (name, f"decision_{turn}", turn, turn),
                ).lastrowid
                events = (("cais", json.dumps([each])), ("environment", None))
                for kind, calls in events:
                    insert = "INSERT INTO events VALUES (NULL, ?, ?, ?, ?, 0.0, '{}')"
                    connection.execute(insert, (name, step, kind, calls))
    return path


def filtered(path: Path) -> Path:
    out = path.parent / "out"
    filter_traces(make_config({"filter": {"input_db": str(path), "output_dir": str(out)}, "split": {"val": 0.0}}, "t"))
    return out / "train.jsonl"


def test_its_episodes_become_lines_that_train(tmp_path: Path) -> None:
    data = filtered(database(tmp_path, [[record(0), record(50)], [record(100)]]))
    lines = [json.loads(line) for line in data.open()]
    assert len(lines) == 3
    for line in lines:
        assert line["tools"] == TOOLS
        assert line["messages"][0] == {"role": "system", "content": "Play."}
        assert [part["type"] for part in line["messages"][1]["content"]] == ["text", "image_url"]
        assert line["messages"][-1]["content"] == tool_call_text(["move_left", "do"])
        assert line["metadata"]["achievements_count"] == 2
    assert {(line["metadata"]["seed"], line["metadata"]["turn"]) for line in lines} == {(0, 0), (0, 1), (1, 0)}
    assert len(read_sft(data, None, 64).images) == 3


def test_a_frame_is_found_by_the_hash_of_its_file(tmp_path: Path) -> None:
    traces = open_traces(database(tmp_path, [[record(7)]]))
    (session,) = traces.sessions()
    (decision,) = traces.decisions(session)
    assert decision.images == [hashlib.sha256(png(7)).hexdigest()]
    assert traces.image(decision.images[0]) == png(7)
    assert decision.tokens == 100
    assert traces.image("0" * 64) is None


ELSEWHERE = [{"role": "user", "parts": [{"type": "image", "uri": "https://example.org/a.png"}]}]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(1, '{"actions": ["fly"]}'), "invalid tool call"),
        (record(1, "not JSON"), "invalid tool call"),
        (record(1, output_tool_calls=[], output_text="I think"), "invalid tool call"),
        (record(1, input_messages=ELSEWHERE), "image missing"),
    ],
)
def test_what_cannot_be_learnt_from_is_counted(bad: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = database(tmp_path, [[bad, record(2)]])
    config = make_config({"filter": {"input_db": str(path), "output_dir": str(tmp_path / "out")}}, "t")
    assert filter_traces(config).decisions.dropped == {reason: 1}


def test_an_episode_without_a_seed_is_told(tmp_path: Path) -> None:
    with pytest.raises(FilterError, match=r"episode run-0 .* its seed is None"):
        filtered(database(tmp_path, [[record(0)]], seed=None))
