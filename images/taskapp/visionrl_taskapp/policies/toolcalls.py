"""Reading the tool call of a model's response: strict parsing that never raises.

A server with a tool parser puts calls into the message's `tool_calls`; others leave them in the text, as
`<tool_call>{json}</tool_call>` (Qwen's and Hermes's format), as fenced or as bare JSON. All are read. The call must
name the tool and from 1 to `max_actions` known actions.

A call inside `<think>…</think>` is one that the model considered: it is not played. A response that was cut off at
`max_tokens` is played if its call is complete.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from visionrl.rollout import ToolCall
from visionrl.tools import TOOL_CALL_CLOSE, TOOL_CALL_OPEN, TOOL_NAME

ErrorKind = Literal["no_call", "many_calls", "bad_json", "unknown_tool", "bad_arguments"]

_BLOCK = re.compile(rf"{TOOL_CALL_OPEN}(.*?)(?:{TOOL_CALL_CLOSE}|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_THOUGHT_END = "</think>"
# Most calls, or objects in a text without tags, that are read: it bounds the work on a hostile response.
_MAX_CANDIDATES = 32
_DECODER = json.JSONDecoder()

# What arguments may hold, so that every reader of the trajectory can read them: pydantic's gives up at 200 levels,
# UTF-8 has no lone surrogates, JSON has neither NaN nor infinity, and many readers have no integers above 64 bits.
_MAX_DEPTH = 16
_MAX_INTEGER = 2**63


@dataclass(frozen=True)
class Actions:
    """A usable response."""

    actions: tuple[str, ...]
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class InvalidResponse:
    """A response that cannot be executed: what is wrong with it, and the calls that could be read."""

    kind: ErrorKind
    message: str
    calls: tuple[ToolCall, ...] = ()


class _InvalidResponseError(Exception):
    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


def call(actions: Sequence[str]) -> ToolCall:
    return ToolCall(tool_name=TOOL_NAME, arguments={"actions": list(actions)})


def message_text(message: Mapping[str, Any]) -> str:
    """An assistant message as one text: its content, and the calls that the server's parser took out of it.

    The parser re-serialises arguments, so the text may differ from what was sampled in white space; training
    reads token ids, never this text.
    """
    content = _content(message).strip()
    parts = [content] if content else []
    for item in _tool_calls(message):
        function = item.get("function") if isinstance(item, Mapping) else None
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, Mapping) else (0, 0)
        body = arguments if isinstance(arguments, str) else _dumped(arguments)
        parts.append(f'{TOOL_CALL_OPEN}\n{{"name": {_dumped(name)}, "arguments": {body}}}\n{TOOL_CALL_CLOSE}')
    return "\n".join(parts)


def without_thoughts(text: str) -> str:
    """A response without what the model thought: `<think>…</think>`, or up to `</think>` where the chat template opened
    the thought in the prompt. A thought that was not closed extends to the end."""
    return _THOUGHT.sub("", text).rpartition(_THOUGHT_END)[2]


def parse(message: Mapping[str, Any], known: Sequence[str], max_actions: int) -> Actions | InvalidResponse:
    """Read the assistant message of a chat completion, whose call may name the `known` actions; never raises."""
    found: list[ToolCall] = []
    try:
        content = _content(message)
        if (calls := _tool_calls(message)) and _is_thinking(content):
            raise _InvalidResponseError(
                "no_call", f"the tool call is inside <think>; call {TOOL_NAME} after {_THOUGHT_END}"
            )
        found.extend(_read_field(calls) or _read_text(without_thoughts(content)))
        return Actions(_check(found, known, max_actions), tuple(found))
    except _InvalidResponseError as wrong:
        return InvalidResponse(wrong.kind, str(wrong), tuple(found))


def _content(message: Mapping[str, Any]) -> str:
    """The message's text; some servers send it as a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type") in ("text", "output_text")]
        content = "".join(text for part in parts if isinstance(text := part.get("text"), str))
    return content if isinstance(content, str) else ""


def _tool_calls(message: Mapping[str, Any]) -> Sequence[Any]:
    calls = message.get("tool_calls")
    return calls[:_MAX_CANDIDATES] if isinstance(calls, list) else ()


def _is_thinking(content: str) -> bool:
    """Whether a thought is open at the end of the text, where the server's parser took out the calls."""
    return content.rfind("<think>") > content.rfind(_THOUGHT_END)


def _check(calls: Sequence[ToolCall], known: Sequence[str], max_actions: int) -> tuple[str, ...]:
    if not calls:
        raise _InvalidResponseError("no_call", f"no tool call in the response; call {TOOL_NAME} once")
    if len(calls) > 1:
        raise _InvalidResponseError("many_calls", f"{len(calls)} tool calls in one response; call {TOOL_NAME} once")
    name, arguments = calls[0].tool_name, calls[0].arguments
    if name != TOOL_NAME:
        raise _InvalidResponseError("unknown_tool", f"unknown tool {_shown(name)}; the tool is {TOOL_NAME}")
    if unknown := sorted(arguments.keys() - {"actions"}):
        raise _InvalidResponseError("bad_arguments", f"unknown argument {_shown(unknown[0])}; the argument is actions")
    actions = arguments.get("actions")
    if not isinstance(actions, list):
        raise _InvalidResponseError("bad_arguments", f"actions must be a list, not {type(actions).__name__}")
    if not 1 <= len(actions) <= max_actions:
        raise _InvalidResponseError("bad_arguments", f"{len(actions)} actions; give 1 to {max_actions}")
    for index, action in enumerate(actions):
        if not isinstance(action, str) or action not in known:
            raise _InvalidResponseError("bad_arguments", f"actions[{index}] is {_shown(action)}, which is no action")
    return tuple(actions)


def _read_field(items: Sequence[Any]) -> list[ToolCall]:
    """Calls of the completion's `tool_calls`, whose arguments are JSON in a string."""
    calls = []
    for item in items:
        function = item.get("function") if isinstance(item, Mapping) else None
        if not isinstance(function, Mapping):
            raise _InvalidResponseError("bad_json", "a tool call without a function")
        calls.append(_tool_call(function))
    return calls


def _read_text(text: str) -> list[ToolCall]:
    if blocks := _BLOCK.findall(text):
        return [_tool_call(_decode(block.strip(), "the tool call")) for block in blocks[:_MAX_CANDIDATES]]
    for candidate in _objects(text):
        if "name" in candidate and "arguments" in candidate:
            return [_tool_call(candidate)]
    return []


def _objects(text: str) -> list[dict[str, Any]]:
    """JSON objects in a text, outermost ones, fenced or bare; what an object that was cut off contains is none."""
    found: list[dict[str, Any]] = []
    position = text.find("{")
    for _ in range(_MAX_CANDIDATES):
        if position < 0:
            break
        try:
            value, end = _DECODER.raw_decode(text, position)
            found.append(value)
        except json.JSONDecodeError as error:
            if _is_cut(text, error):
                break
            end = position + 1
        except (ValueError, RecursionError):
            end = position + 1
        position = text.find("{", end)
    return found


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the JSON failed because the text ended."""
    rest = text[error.pos :].rstrip()
    return error.msg.startswith("Unterminated string") or any(
        word.startswith(rest) for word in ("true", "false", "null")
    )


def _tool_call(value: Any) -> ToolCall:
    if not isinstance(value, Mapping):
        raise _InvalidResponseError("bad_json", f"the tool call is a {type(value).__name__}, not an object")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str):
        raise _InvalidResponseError("unknown_tool", f"the tool call has no name; the tool is {TOOL_NAME}")
    if isinstance(arguments, str):
        arguments = _decode(arguments, "the arguments")
    if not isinstance(arguments, dict):
        raise _InvalidResponseError("bad_arguments", f"arguments must be an object, not {type(arguments).__name__}")
    if problem := _unreadable(name) or _unreadable(arguments):
        raise _InvalidResponseError("bad_arguments", f"the tool call holds {problem}")
    return ToolCall(tool_name=name, arguments=arguments)


def _decode(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _InvalidResponseError("bad_json", f"{what} cannot be read as JSON: {error}") from None


def _unreadable(value: Any, depth: int = _MAX_DEPTH) -> str | None:
    """What some reader of the trajectory could not read in a decoded JSON value."""
    match value:
        case str():
            return "half of a surrogate pair" if any("\ud800" <= character <= "\udfff" for character in value) else None
        case bool() | None:
            return None
        case int():
            return None if -_MAX_INTEGER <= value < _MAX_INTEGER else "an integer of more than 64 bits"
        case float():
            return None if math.isfinite(value) else "a number that is not finite"
    if not depth:
        return f"more than {_MAX_DEPTH} levels of brackets"
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return next((problem for item in inner if (problem := _unreadable(item, depth - 1))), None)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "null"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
