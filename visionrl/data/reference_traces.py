"""Reading the reference system's trace database (its tracing, version 3), as it is written by its task app.

Its model calls are records in the column ``events.call_records``, with frames as data URLs inside the messages; there
is no table of images. Here a frame's name is the SHA-256 of its file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from visionrl.crafter import ACTIONS
from visionrl.data.read import Session, TraceDatabase, TracedDecision
from visionrl.documents import parse_json
from visionrl.tools import TOOL_NAME, tool_call_text

_CALLS = (
    "SELECT e.id, t.turn_number, e.call_records FROM events e LEFT JOIN session_timesteps t ON e.timestep_id = t.id "
    "WHERE e.session_id = ? AND e.event_type = 'cais' AND e.call_records IS NOT NULL ORDER BY t.step_index, e.id"
)


def open_traces(path: Path) -> TraceDatabase:
    """A file of traces, ours or the reference's. Raises :class:`visionrl.data.config.FilterError`."""
    return ReferenceTraces(path) if _is_reference(path) else TraceDatabase(path)


def _is_reference(path: Path) -> bool:
    """Whether the table of events has the reference's column. What cannot be read is told by who opens it."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(
        sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
    ) as connection:  # fmt: skip
        return any(column[1] == "call_records" for column in connection.execute("PRAGMA table_info(events)"))
    return False


class ReferenceTraces(TraceDatabase):
    """Its episodes in our form: an answer is the text of its tool call, and the call's actions are those played.
    An episode that was cut short is not marked as such in its file."""

    TABLES = ("session_traces", "session_timesteps", "events", "outcome_rewards")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._events: dict[str, int] = {}
        """By frame: an event that shows it."""

    def decisions(self, session: Session) -> list[TracedDecision]:
        with self._told():
            rows = self._connection.execute(_CALLS, (session.session_id,)).fetchall()
        with self._understood(f"episode {session.session_id}"):
            decisions: list[TracedDecision] = []
            for event, turn, text in rows:
                for record in _records(text):
                    number = len(decisions) if turn is None else turn
                    decisions.append(_decision(number, record))
                    self._events.update(dict.fromkeys(decisions[-1].images, event))
            return decisions

    def image(self, sha256: str) -> bytes | None:
        event = self._events.get(sha256)
        return None if event is None else self._frames(event).get(sha256)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a file is read once
    def _frames(self, event: int) -> dict[str, bytes]:
        """The frames of an event's messages."""
        with self._told():
            row = self._connection.execute("SELECT call_records FROM events WHERE id = ?", (event,)).fetchone()
        frames = (data for record in _records(row[0]) for _, data in _images(record) if data is not None)
        return {hashlib.sha256(data).hexdigest(): data for data in frames}

    def _session(
        self, session_id: str, created_at: str, metadata: str, reward: float | None, achievements: int | None
    ) -> Session:
        with self._understood(f"episode {session_id}"):
            known = {"tools": self._tools(session_id), "abort_reason": None, **(parse_json(metadata or "{}"))}
            return super()._session(session_id, created_at, json.dumps(known), reward, achievements)

    def _tools(self, session_id: str) -> list[dict[str, Any]]:
        """The tools of an episode's first call."""
        with self._told():
            row = self._connection.execute(f"{_CALLS} LIMIT 1", (session_id,)).fetchone()
        records = _records(row[2]) if row else []
        return (records[0]["request_params"].get("raw_params", {}).get("tools") or []) if records else []


def _records(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parse_json(text)
    return found


def _decision(turn: int, record: dict[str, Any]) -> TracedDecision:
    names = iter([name for name, _ in _images(record)])
    calls = record.get("output_tool_calls") or []
    actions, error = _actions(calls)
    usage: dict[str, Any] = record.get("usage") or {}
    counts: list[Any] = [usage.get("input_tokens"), usage.get("output_tokens")]
    return TracedDecision(
        turn=turn,
        messages=[
            {"role": message["role"], "content": _content(message["parts"], names)}
            for message in record["input_messages"]
        ],
        answer=tool_call_text(actions)
        if actions
        else record.get("output_text") or (json.dumps(calls) if calls else ""),
        label=None,
        error=error,
        actions=actions,
        model=record["model_name"],
        tokens=sum(counts) if all(type(count) is int for count in counts) else None,
    )


def _content(parts: Sequence[dict[str, Any]], names: Iterator[str]) -> str | list[dict[str, str]]:
    """A message's content: a text where it has nothing else. ``names`` are the frames of the call, in order."""
    if [part["type"] for part in parts] == ["text"]:
        return str(parts[0]["text"])
    return [
        {"type": "image", "sha256": next(names)}
        if part["type"] == "image"
        else {"type": "text", "text": str(part["text"])}
        for part in parts
    ]


def _images(record: dict[str, Any]) -> Iterator[tuple[str, bytes | None]]:
    """The frames of a call by their names; None for one that is not in the file."""
    for message in record["input_messages"]:
        for part in message["parts"]:
            if part["type"] == "image":
                uri = part.get("uri") or ""
                data = _decoded(part.get("base64_data") or uri.partition(";base64,")[2])
                yield hashlib.sha256(uri.encode() if data is None else data).hexdigest(), data


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) or None
    except binascii.Error:
        return None


def _actions(calls: Sequence[dict[str, Any]]) -> tuple[list[str], str | None]:
    """The actions of an answer's calls, or why there are none that can be played."""
    actions: list[str] = []
    for call in calls:
        try:
            listed = parse_json(call["arguments_json"])["actions"]
        except (ValueError, KeyError, TypeError):
            return [], f"a call of {call.get('name')} without actions"
        if call.get("name") != TOOL_NAME or not isinstance(listed, list) or not set(map(str, listed)) <= set(ACTIONS):
            return [], f"{call.get('name')} is not called with known actions"
        actions += listed
    return actions, None if actions else f"no call of {TOOL_NAME}"
