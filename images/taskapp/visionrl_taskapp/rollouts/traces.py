"""Session traces: a played episode as JSON and as rows of a SQLite file.

Tables follow the reference system's (sessions, timesteps, events, messages, rewards); images are stored once, by
the hash of their pixels. An episode is one transaction, written by a thread of its own.
"""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from visionrl_taskapp.rollouts.trajectory import Episode, Turn

log = logging.getLogger(__name__)

TraceFormat = Literal["compact", "full", "structured"]

DEFAULT_MAX_EPISODES = 2000
_MAX_WAITING_BYTES = 256 << 20
"""64 episodes of 50 turns at 288 pixels end at the same moment and wait, with room to spare."""
_TURN_BYTES = 16 << 10
"""What a turn weighs beside its frames, at a guess: texts, token ids."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS session_traces (
    session_id TEXT PRIMARY KEY, created_at TEXT NOT NULL, num_timesteps INTEGER NOT NULL,
    num_events INTEGER NOT NULL, num_messages INTEGER NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS session_timesteps (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL REFERENCES session_traces ON DELETE CASCADE,
    step_id TEXT NOT NULL, step_index INTEGER NOT NULL, turn_number INTEGER NOT NULL, completed_at TEXT NOT NULL,
    step_metadata TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL REFERENCES session_traces ON DELETE CASCADE,
    timestep_id INTEGER NOT NULL REFERENCES session_timesteps ON DELETE CASCADE,
    event_type TEXT NOT NULL, event_time TEXT NOT NULL, model_name TEXT, input_tokens INTEGER,
    output_tokens INTEGER, latency_ms REAL, reward REAL, terminated INTEGER, content TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL REFERENCES session_traces ON DELETE CASCADE,
    timestep_id INTEGER NOT NULL REFERENCES session_timesteps ON DELETE CASCADE,
    message_type TEXT NOT NULL, content TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outcome_rewards (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL REFERENCES session_traces ON DELETE CASCADE,
    total_reward REAL NOT NULL, achievements_count INTEGER NOT NULL, total_steps INTEGER NOT NULL,
    reward_metadata TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS event_rewards (
    id INTEGER PRIMARY KEY, event_id INTEGER NOT NULL REFERENCES events ON DELETE CASCADE,
    session_id TEXT NOT NULL REFERENCES session_traces ON DELETE CASCADE, turn_number INTEGER NOT NULL,
    reward_type TEXT NOT NULL, reward_value REAL NOT NULL, key TEXT
);
CREATE TABLE IF NOT EXISTS images (sha256 TEXT PRIMARY KEY, png BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS session_images (
    session_id TEXT NOT NULL REFERENCES session_traces ON DELETE CASCADE, sha256 TEXT NOT NULL,
    PRIMARY KEY (session_id, sha256)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS timesteps_by_session ON session_timesteps (session_id);
CREATE INDEX IF NOT EXISTS events_by_session ON events (session_id);
CREATE INDEX IF NOT EXISTS events_by_timestep ON events (timestep_id);
CREATE INDEX IF NOT EXISTS messages_by_session ON messages (session_id);
CREATE INDEX IF NOT EXISTS messages_by_timestep ON messages (timestep_id);
CREATE INDEX IF NOT EXISTS outcomes_by_session ON outcome_rewards (session_id);
CREATE INDEX IF NOT EXISTS rewards_by_session ON event_rewards (session_id);
CREATE INDEX IF NOT EXISTS rewards_by_event ON event_rewards (event_id);
CREATE INDEX IF NOT EXISTS sessions_by_image ON session_images (sha256);
"""


def trace(episode: Episode, form: TraceFormat) -> dict[str, Any]:
    """The session trace inline.

    `compact` has one short row per turn; `structured` all timesteps with their events and messages, images by hash;
    `full` is `structured` with the images' PNGs (base64) beside.
    """
    session: dict[str, Any] = {
        "session_id": episode.request.run_id,
        "created_at": _time(episode.began),
        "metadata": _metadata(episode),
        "outcome": _outcome(episode),
    }
    if form == "compact":
        return session | {"timesteps": [_row(turn) for turn in episode.turns]}
    session["timesteps"] = [_timestep(turn) for turn in episode.turns]
    if form == "full":
        session["images"] = {name: base64.b64encode(png).decode() for name, png in episode.frames.items()}
    return session


def _metadata(episode: Episode) -> dict[str, Any]:
    request, abort = episode.request, episode.abort
    return {
        "env_name": request.env.env_name,
        "env_config": request.env.config.model_dump(),
        "seed": request.env.seed,
        "policy_name": request.policy.policy_name,
        "policy_config": request.policy.config.model_dump(),
        "mode": request.mode,
        "training_session_id": request.training_session_id,
        "tools": episode.tools,
        "aborted": abort is not None,
        "abort_reason": abort.reason if abort else None,
        "abort_message": abort.message if abort else None,
        "max_ops_reached": episode.max_ops_reached,
    }


def _outcome(episode: Episode) -> dict[str, Any]:
    return {
        "total_reward": sum(turn.decision.reward.total for turn in episode.turns),
        "achievements_count": len(episode.unlocked),
        "achievements": list(episode.unlocked),
        "total_steps": episode.env_steps,
    }


def _row(turn: Turn) -> dict[str, Any]:
    decision = turn.decision
    return {
        "turn": decision.index,
        "model": decision.model,
        "actions": decision.actions,
        "valid": decision.valid,
        "unlocked": decision.unlocked,
        "reward": decision.reward.total,
    }


def _timestep(turn: Turn) -> dict[str, Any]:
    decision = turn.decision
    response = {"role": "assistant", "content": decision.text}
    call = {
        "event_type": "llm_call",
        "model_name": decision.model,
        "input_messages": turn.messages,
        "output_message": response,
        "tool_calls": [tool_call.model_dump() for tool_call in decision.tool_calls],
        "finish_reason": decision.finish_reason,
        "error": decision.error,
        "label": decision.label,
        "usage": dict(turn.usage),
        "latency_ms": decision.timings.inference_ms,
        "prompt_token_ids": decision.prompt_token_ids,
        "token_ids": decision.token_ids,
        "logprobs": decision.logprobs,
    }
    environment = {
        "event_type": "environment",
        "actions": decision.actions,
        "unlocked": decision.unlocked,
        "reward": decision.reward.model_dump(),
        "terminated": decision.done,
        "state_before": {"state_hash": decision.state_hash, **turn.state},
        "state_after": dict(turn.state_after),
    }
    return {
        "step_id": f"turn-{decision.index}",
        "turn": decision.index,
        "completed_at": _time(turn.ended),
        "images": decision.images,
        "timings": decision.timings.model_dump(),
        "events": [call, environment],
        "messages": [turn.messages[-1], response],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class TraceStore:
    """`traces.db` in a folder. Keeps the last `max_episodes` episodes; a failing disk costs traces, never episodes.

    Counters (`written`, `failed`) and `last_error` are for `/info`.
    """

    def __init__(self, folder: Path, max_episodes: int = DEFAULT_MAX_EPISODES) -> None:
        self.path = folder / "traces.db"
        self.max_episodes = max_episodes
        self.written = self.failed = 0
        self.last_error: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._connection: sqlite3.Connection | None = None
        self._waiting, self._lock = 0, threading.Lock()

    def write(self, episode: Episode) -> None:
        """Store an episode in the background; an earlier one of the same run id is replaced.

        Never blocks: where the disk is so slow that episodes fill the memory, the trace is dropped and counted as
        failed.
        """
        size = sum(map(len, episode.frames.values())) + _TURN_BYTES * len(episode.turns)
        if self._reserve(size):
            self._thread.submit(self._try_to_write, episode, size)
        else:
            self._lost(episode, f"{self._waiting >> 20} MiB of episodes wait for the disk already")

    def flush(self) -> None:
        """Return when every episode that was submitted is on disk."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Write what is queued, then close the file."""
        self._thread.shutdown(wait=True)
        if self._connection:
            self._connection.close()
            self._connection = None

    def _reserve(self, size: int) -> bool:
        """Count bytes as waiting, unless there are too many then."""
        with self._lock:
            if not self._waiting + size <= _MAX_WAITING_BYTES:
                return False
            self._waiting += size
            return True

    def _try_to_write(self, episode: Episode, size: int) -> None:
        try:
            self._write(episode)
            self.written += 1
        except Exception as error:  # whatever it is: a trace is lost, and the next one is tried
            self._lost(episode, f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._waiting -= size

    def _lost(self, episode: Episode, why: str) -> None:
        self.failed += 1
        self.last_error = why
        log.error("trace of %s is lost: %s: %s", episode.request.run_id, self.path, why)

    def _write(self, episode: Episode) -> None:
        if self._connection is None:
            self._connection = _connect(self.path)
        # The context manager commits, or rolls back where anything fails.
        with self._connection as database:
            database.execute("BEGIN IMMEDIATE")
            _delete(database, [episode.request.run_id])
            _insert(database, episode)
            # Newest first: everything beyond the bound.
            beyond = "SELECT session_id FROM session_traces ORDER BY rowid DESC LIMIT -1 OFFSET ?"
            _delete(database, [name for (name,) in database.execute(beyond, (self.max_episodes,)).fetchall()])


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.executescript(_SCHEMA)
    return connection


def _delete(database: sqlite3.Connection, sessions: list[str]) -> None:
    for session in sessions:
        names = database.execute("SELECT sha256 FROM session_images WHERE session_id = ?", (session,)).fetchall()
        database.execute("DELETE FROM session_traces WHERE session_id = ?", (session,))
        database.executemany(
            "DELETE FROM images WHERE sha256 = ?1 AND NOT EXISTS (SELECT 1 FROM session_images WHERE sha256 = ?1)",
            names,
        )


def _insert(database: sqlite3.Connection, episode: Episode) -> None:
    session = trace(episode, "structured")
    name, steps, outcome = session["session_id"], session["timesteps"], session["outcome"]
    database.execute(
        "INSERT INTO session_traces VALUES (?, ?, ?, ?, ?, ?)",
        (name, session["created_at"], len(steps), 2 * len(steps), 2 * len(steps), _json(session["metadata"])),
    )
    database.execute(
        "INSERT INTO outcome_rewards VALUES (NULL, ?, ?, ?, ?, ?)",
        (name, outcome["total_reward"], outcome["achievements_count"], outcome["total_steps"], _json(outcome)),
    )
    for turn, step in zip(episode.turns, steps, strict=True):
        _insert_timestep(database, name, turn, step)
    for sha256, png in episode.frames.items():
        database.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (sha256, png))
        database.execute("INSERT INTO session_images VALUES (?, ?)", (name, sha256))


def _insert_timestep(database: sqlite3.Connection, session: str, turn: Turn, step: dict[str, Any]) -> None:
    index, time = step["turn"], step["completed_at"]
    metadata = _json({"images": step["images"], "timings": step["timings"]})
    timestep = database.execute(
        "INSERT INTO session_timesteps VALUES (NULL, ?, ?, ?, ?, ?, ?)",
        (session, step["step_id"], index, index, time, metadata),
    ).lastrowid
    for message in step["messages"]:
        database.execute(
            "INSERT INTO messages VALUES (NULL, ?, ?, ?, ?)",
            (session, timestep, message["role"], _json(message["content"])),
        )
    call, environment = step["events"]
    reward = turn.decision.reward
    database.execute(
        "INSERT INTO events VALUES (NULL, ?, ?, 'llm_call', ?, ?, ?, ?, ?, NULL, NULL, ?)",
        (
            *(session, timestep, time, call["model_name"]),
            *(call["usage"].get("prompt_tokens"), call["usage"].get("completion_tokens"), call["latency_ms"]),
            _json(call),
        ),
    )
    event = database.execute(
        "INSERT INTO events VALUES (NULL, ?, ?, 'environment', ?, NULL, NULL, NULL, NULL, ?, ?, ?)",
        (session, timestep, time, reward.total, turn.decision.done, _json(environment)),
    ).lastrowid
    database.executemany(
        "INSERT INTO event_rewards VALUES (NULL, ?, ?, ?, ?, ?, ?)",
        [(event, session, index, *part) for part in _rewards(turn)],
    )


def _rewards(turn: Turn) -> Iterator[tuple[str, float, str | None]]:
    """Rows of (type, value, key): one per event, and one for each other part that is not zero."""
    reward = turn.decision.reward
    for name in turn.decision.unlocked:
        yield "event", 1.0, name
    if reward.step:
        yield "step", reward.step, None
    if reward.penalty:
        yield "penalty", -reward.penalty, None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
