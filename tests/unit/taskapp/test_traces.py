"""What is left of an episode in traces.db, and what a full disk costs."""

import asyncio
import json
import math
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from visionrl.frames import decode_png, frame_hash
from visionrl.rollout import ToolCall
from visionrl_taskapp.policies.inference_client import InferenceClient
from visionrl_taskapp.rollouts import traces
from visionrl_taskapp.rollouts.episode import Services, play
from visionrl_taskapp.rollouts.simulation import Worlds
from visionrl_taskapp.rollouts.traces import TraceStore, trace
from visionrl_taskapp.rollouts.trajectory import Episode
from visionrl_taskapp.server.validation import parse_request


def episode(run_id: str = "run-1", seed: int = 2_000_003, turns: int = 6) -> Episode:
    request = parse_request(
        {
            "run_id": run_id,
            "mode": "eval",
            "env": {"seed": seed, "config": {"image_size": 72}},
            "policy": {"policy_name": "crafter-scripted", "config": {"max_llm_calls": turns}},
            "rewards": {"step_rewards": "consistent"},
        }
    )
    no_server = cast(InferenceClient, None)  # the teacher asks none
    with ThreadPoolExecutor(1) as workers:
        return asyncio.run(play(request, Services(Worlds(), no_server, workers, keep_images=True)))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    store = TraceStore(tmp_path, max_episodes=3)
    yield store
    store.close()


def rows(store: TraceStore, query: str, *arguments: object) -> list[Any]:
    with sqlite3.connect(store.path) as database:
        return database.execute(query, arguments).fetchall()


def test_an_episode_leaves_a_row_for_everything(store: TraceStore) -> None:
    played = episode()
    store.write(played)
    store.flush()
    assert rows(store, "SELECT session_id, num_timesteps FROM session_traces") == [("run-1", 6)]
    assert rows(store, "SELECT count(*) FROM session_timesteps") == [(6,)]
    assert dict(rows(store, "SELECT event_type, count(*) FROM events GROUP BY 1")) == {"llm_call": 6, "environment": 6}
    assert dict(rows(store, "SELECT message_type, count(*) FROM messages GROUP BY 1")) == {"user": 6, "assistant": 6}
    [(total, count)] = rows(store, "SELECT total_reward, achievements_count FROM outcome_rewards")
    assert count == len(played.unlocked) > 0
    [(events,)] = rows(store, "SELECT sum(reward_value) FROM event_rewards WHERE reward_type = 'event'")
    assert events == count
    [(every,)] = rows(store, "SELECT sum(reward_value) FROM event_rewards")
    assert every == total
    keys = rows(store, "SELECT key FROM event_rewards WHERE key IS NOT NULL")
    assert {key for (key,) in keys} == set(played.unlocked)


def test_images_are_stored_once_by_the_hash_of_their_pixels(store: TraceStore) -> None:
    store.write(episode("first"))
    store.write(episode("second"))
    store.flush()
    images = rows(store, "SELECT sha256, png FROM images")
    assert len(images) == len(episode().frames)
    assert all(frame_hash(decode_png(png)) == name for name, png in images)
    [(call,)] = rows(store, "SELECT content FROM events WHERE event_type = 'llm_call' LIMIT 1")
    prompt = json.loads(call)["input_messages"]
    assert prompt[-1]["content"][0]["sha256"] in {name for name, _ in images}


def test_the_same_run_is_stored_once(store: TraceStore) -> None:
    store.write(episode(turns=6))
    store.write(episode(turns=2))
    store.flush()
    assert rows(store, "SELECT session_id, num_timesteps FROM session_traces") == [("run-1", 2)]
    assert rows(store, "SELECT count(*) FROM events") == [(4,)]


def test_the_oldest_episodes_go_with_their_images(store: TraceStore) -> None:
    played = [episode(f"run-{seed}", seed=2_000_000 + seed, turns=2) for seed in range(5)]
    for one in played:
        store.write(one)
    store.flush()
    assert [name for (name,) in rows(store, "SELECT session_id FROM session_traces ORDER BY rowid")] == [
        "run-2",
        "run-3",
        "run-4",
    ]
    kept = {name for one in played[2:] for name in one.frames}
    assert {name for (name,) in rows(store, "SELECT sha256 FROM images")} == kept
    assert rows(store, "SELECT count(*) FROM session_timesteps") == [(6,)]


def test_a_full_disk_is_counted_and_the_next_episode_is_stored_again(store: TraceStore) -> None:
    store.write(episode("first", turns=1))
    store.flush()
    database = store._connection
    assert database is not None
    [(pages,)] = store._thread.submit(lambda: database.execute("PRAGMA page_count").fetchall()).result()
    limit = f"PRAGMA max_page_count = {pages + 1}"
    store._thread.submit(lambda: database.execute(limit)).result()
    store.write(episode("second", turns=12))
    store.flush()
    assert (store.written, store.failed) == (1, 1)
    assert store.last_error is not None
    assert "full" in store.last_error
    store._thread.submit(lambda: database.execute("PRAGMA max_page_count = 1000000")).result()
    store.write(episode("third", turns=1))
    store.flush()
    assert [name for (name,) in rows(store, "SELECT session_id FROM session_traces")] == ["first", "third"]
    assert rows(store, "SELECT count(*) FROM session_timesteps") == [(2,)], "nothing half-written is left"


def test_a_folder_that_cannot_be_made_costs_traces_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = TraceStore(tmp_path / "file" / "traces")
    store.write(episode())
    store.flush()
    assert (store.written, store.failed) == (0, 1)
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "\ud800"},  # no UTF-8
        {"finish_reason": "\udfff"},
        {"logprobs": [math.nan]},  # no JSON
        {"tool_calls": [ToolCall(tool_name="x", arguments={"a": nested(2000)})]},
    ],
    ids=["model", "finish-reason", "nan", "nested"],
)
def test_a_trace_that_cannot_be_stored_is_counted_and_the_next_one_is(
    store: TraceStore, change: dict[str, Any]
) -> None:
    played = episode("first", turns=2)
    wrong = replace(played.turns[1], decision=played.turns[1].decision.model_copy(update=change))
    store.write(replace(played, turns=(played.turns[0], wrong)))
    store.write(episode("second", turns=1))
    store.flush()
    assert (store.written, store.failed) == (1, 1)
    assert store.last_error
    assert rows(store, "SELECT session_id FROM session_traces") == [("second",)]
    assert rows(store, "SELECT count(*) FROM session_timesteps") == [(1,)], "nothing half-written is left"


def test_a_number_that_sqlite_cannot_hold_costs_one_trace(store: TraceStore) -> None:
    played = episode(turns=1)
    store.write(replace(played, turns=(replace(played.turns[0], usage={"prompt_tokens": 2**63}),)))
    store.flush()
    assert (store.written, store.failed) == (0, 1)
    assert store.last_error is not None
    assert "OverflowError" in store.last_error


def test_many_episodes_that_end_at_the_same_moment_are_all_stored(
    store: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of an evaluation: all have the same number of turns."""
    slow, write = threading.Event(), store._write
    monkeypatch.setattr(store, "_write", lambda played: (slow.wait(60), write(played)))
    played = episode(turns=1)
    for _ in range(300):
        store.write(played)
    slow.set()
    store.flush()
    assert (store.written, store.failed) == (300, 0)


def test_a_disk_that_hangs_drops_traces_instead_of_filling_the_memory(
    store: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store, "_write", lambda played: answers.wait(60))
    monkeypatch.setattr(traces, "_MAX_WAITING_BYTES", 3 * traces._TURN_BYTES)
    played = episode(turns=1)
    assert sum(map(len, played.frames.values())) < traces._TURN_BYTES / 3
    for _ in range(4):
        store.write(played)
    assert store.failed == 2
    assert store.last_error is not None
    assert "wait for the disk" in store.last_error
    answers.set()
    store.flush()
    store.write(played)
    store.flush()
    assert (store.written, store.failed) == (3, 2), "there is room again"


def test_inline_traces_differ_in_how_much_they_tell() -> None:
    played = episode()
    compact, structured, full = (trace(played, form) for form in ("compact", "structured", "full"))
    assert compact["session_id"] == structured["session_id"] == full["session_id"] == "run-1"
    assert compact["outcome"]["achievements_count"] == len(played.unlocked)
    assert set(compact["timesteps"][0]) == {"turn", "model", "actions", "valid", "unlocked", "reward"}
    assert [event["event_type"] for event in structured["timesteps"][0]["events"]] == ["llm_call", "environment"]
    assert "images" not in structured
    assert set(full["images"]) == set(played.frames)
    json.dumps(full)
