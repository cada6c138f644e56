"""Reading traces.db: sessions with their decisions, and images by hash. The file is never written to."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from visionrl.data.config import FilterError
from visionrl.documents import parse_json

_SESSIONS = (
    "SELECT s.session_id, s.created_at, s.metadata, o.total_reward, o.achievements_count FROM session_traces s "
    "LEFT JOIN outcome_rewards o USING (session_id) ORDER BY s.rowid"
)
_DECISIONS = (
    "SELECT t.turn_number, e.event_type, e.content FROM session_timesteps t JOIN events e ON e.timestep_id = t.id "
    "WHERE t.session_id = ? AND e.event_type IN ('llm_call', 'environment') ORDER BY t.turn_number, t.id, e.id"
)


@dataclass(frozen=True)
class Session:
    """One traced episode."""

    session_id: str
    created_at: str
    env_name: str
    seed: int
    policy_name: str
    tools: list[dict[str, Any]]
    abort_reason: str | None
    total_reward: float
    achievements: int


@dataclass(frozen=True)
class TracedDecision:
    """One turn: the prompt, the answer and the executed actions."""

    turn: int
    messages: list[dict[str, Any]]
    """The prompt; frames are parts ``{"type": "image", "sha256": …}``."""
    answer: str
    label: str | None
    """The answer to imitate, where it differs from the one that was executed."""
    error: str | None
    """Why the answer was no usable tool call."""
    actions: Sequence[str]
    model: str
    tokens: int | None
    """Of prompt and answer, as the server counted them."""

    @property
    def target(self) -> str:
        """What a model should answer."""
        return self.answer if self.label is None else self.label

    @property
    def images(self) -> list[str]:
        """Hashes of the frames, in the order of the prompt."""
        return [part["sha256"] for message in self.messages for part in image_parts(message)]


def image_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The image parts of a message."""
    content = message["content"]
    return [] if isinstance(content, str) else [part for part in content if part["type"] == "image"]


class TraceDatabase:
    """A traces.db. Every method raises :class:`FilterError` for a file that is damaged or something else."""

    TABLES: ClassVar[tuple[str, ...]] = ("session_traces", "session_timesteps", "events", "outcome_rewards", "images")

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            hint = f"; there is {path / 'traces.db'}" if (path / "traces.db").is_file() else ""
            raise FilterError(f"{path}: no such file{hint}")
        self._connection = self._open()

    def close(self) -> None:
        self._connection.close()

    def sessions(self) -> list[Session]:
        """All episodes, in the order in which they were traced."""
        with self._told():
            rows = self._connection.execute(_SESSIONS).fetchall()
        return [self._session(*row) for row in rows]

    def decisions(self, session: Session) -> list[TracedDecision]:
        """The turns of an episode."""
        with self._told():
            rows = self._connection.execute(_DECISIONS, (session.session_id,)).fetchall()
        with self._understood(f"episode {session.session_id}"):
            done = {turn: parse_json(content)["actions"] for turn, kind, content in rows if kind == "environment"}
            calls = [(turn, parse_json(content)) for turn, kind, content in rows if kind == "llm_call"]
            return [_decision(turn, call, done[turn]) for turn, call in calls]

    def image(self, sha256: str) -> bytes | None:
        """A frame's PNG."""
        with self._told():
            row = self._connection.execute("SELECT png FROM images WHERE sha256 = ?", (sha256,)).fetchone()
        return row[0] if row else None

    def _open(self) -> sqlite3.Connection:
        # While a file is being written, its newest pages are in a log beside it. Without such a log no lock is needed,
        # and a read-only folder is enough.
        live = self.path.with_name(f"{self.path.name}-wal").exists()
        mode = "mode=ro" if live else "mode=ro&immutable=1"
        with self._told():
            connection = sqlite3.connect(f"file:{quote(str(self.path.resolve()))}?{mode}", uri=True)
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if missing := [table for table in self.TABLES if table not in names]:
            connection.close()
            raise FilterError(f"{self.path} is not a traces.db: it has no table {missing[0]}")
        return connection

    def _session(
        self, session_id: str, created_at: str, metadata: str, reward: float | None, achievements: int | None
    ) -> Session:
        with self._understood(f"episode {session_id}"):
            data = parse_json(metadata)
            if reward is None or achievements is None:
                raise ValueError("it has no row in outcome_rewards")
            if type(data["seed"]) is not int:
                raise TypeError(f"its seed is {data['seed']!r}")
            return Session(
                session_id=session_id,
                created_at=str(created_at),
                env_name=data["env_name"],
                seed=data["seed"],
                policy_name=data["policy_name"],
                tools=data["tools"],
                abort_reason=data["abort_reason"],
                total_reward=float(reward),
                achievements=achievements,
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise FilterError(f"{self.path} cannot be read: {error}") from None
        except sqlite3.DatabaseError as error:
            hint = "cut off or damaged" if "malformed" in str(error) else "not a SQLite file"
            raise FilterError(f"{self.path} is {hint}: {error}") from None

    @contextlib.contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise FilterError(f"{self.path}: {what} is not as the task app writes it: it has no {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise FilterError(f"{self.path}: {what} is not as the task app writes it: {error}") from None


def _decision(turn: int, call: dict[str, Any], actions: list[str]) -> TracedDecision:
    usage, messages = call["usage"], [_shared(message) for message in call["input_messages"]]
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    decision = TracedDecision(
        turn=turn,
        messages=messages,
        answer=call["output_message"]["content"],
        label=call["label"],
        error=call["error"],
        actions=actions,
        model=call["model_name"],
        tokens=sum(counts) if all(type(count) is int for count in counts) else None,
    )
    if not isinstance(decision.answer, str) or not all(isinstance(name, str) for name in decision.images):
        raise TypeError(f"turn {turn} has an answer or an image that is not text")
    return decision


def _shared(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its text shared: every decision has the same system prompt, and tens of thousands are held."""
    content = message["content"]
    return {**message, "content": sys.intern(content)} if isinstance(content, str) else message
