"""The trainer's report as it comes from a pod whose container image a user chose: nothing in it is trusted.

What fits is taken and the rest is left out, so that a trainer of another version, or a broken one, still shows what it
can. Every text is one short line, every number one that the API server stores: a report must neither fill the status
nor keep it from being written.
"""

from __future__ import annotations

import json
import math
from typing import Any, get_args

from pydantic import ValidationError

from visionrl.status import Copy, TrainerPhase, TrainerReport

MAX_REPORT_BYTES = 64 * 1024
MAX_TEXT = 300
"""Characters of a text."""
MAX_INTEGER = 2**53
MAX_DEPTH = 5
MAX_COPIES = 8

_DROPPED = object()


def read_report(content: bytes) -> TrainerReport | None:
    """The report in the body of an answer; None where it is none or has more than ``MAX_REPORT_BYTES``."""
    if len(content) > MAX_REPORT_BYTES:
        return None
    try:
        document = _bounded(json.loads(content), MAX_DEPTH)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("phase"), str) and document["phase"] not in get_args(TrainerPhase):
        document["phase"] = "Training"  # a phase of a newer trainer; it runs
    return _validated(document)


def read_copies(content: bytes) -> tuple[str, tuple[Copy, ...]]:
    """Policy version and copies in what an exporter left; none of them where it is not that."""
    try:
        document = json.loads(content) if len(content) <= MAX_REPORT_BYTES else {}
        copies = tuple(Copy.model_validate(copy) for copy in document["copies"][:MAX_COPIES])
        return str(_bounded(document["version"], 1)), copies
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", ()


def _validated(document: dict[str, Any]) -> TrainerReport | None:
    """The report without the fields that are unknown or wrong."""
    while True:
        try:
            return TrainerReport.model_validate(document)
        except ValidationError as error:
            wrong = {item["loc"][:-1] if item["type"] == "missing" else item["loc"] for item in error.errors()}
        if () in wrong:
            return None
        document = _without(document, wrong, ())


def _without(value: Any, wrong: set[tuple[int | str, ...]], at: tuple[int | str, ...]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without(inner, wrong, (*at, name)) for name, inner in value.items() if (*at, name) not in wrong}


def _bounded(value: Any, depth: int) -> Any:
    """The value with short texts and storable numbers; ``_DROPPED`` where nothing of it can stay."""
    match value:
        case None | bool():
            return value
        case int():
            return value if abs(value) <= MAX_INTEGER else _DROPPED
        case float():
            return value if math.isfinite(value) else _DROPPED
        case str():
            line = " ".join(value[: 4 * MAX_TEXT].split())[:MAX_TEXT]
            return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
        case dict() if depth > 0:
            inner = {name: _bounded(item, depth - 1) for name, item in value.items()}
            return {name: item for name, item in inner.items() if item is not _DROPPED}
    return _DROPPED
