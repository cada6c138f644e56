"""What is wrong with a document, told so that its author can mend it: the field, the line, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

MAX_SHOWN = 80
"""Characters of a wrong value that a message quotes."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document, at a dotted path such as ``spec.training.groupSize``."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def located(problem: Problem, source: str, lines: Mapping[str, int]) -> str:
    """ "job.yaml:12: spec.training.groupSize: …": with the line of the field, or of the nearest one around it."""
    line = nearest_line(problem.path, lines)
    return f"{source}:{line}: {problem}" if line else f"{source}: {problem}"


def nearest_line(path: str, lines: Mapping[str, int]) -> int | None:
    """Line of a field, or of the nearest field around it that the file has."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)


def problems(
    error: ValidationError, model: type[BaseModel], prefix: str = "", by_alias: bool = True
) -> Iterable[Problem]:
    """pydantic's errors as problems, with the nearest known name for an unknown key.

    `by_alias` suggests the names of files (camelCase), otherwise those of Python and of the HTTP messages.
    """
    for item in error.errors():
        location: Location = item["loc"]
        if location and location[-1] == "[key]":  # of a mapping whose keys have a form
            location = location[:-1]
        path = ".".join(filter(None, (prefix, dotted(location))))
        if item["type"] == "extra_forbidden":
            yield Problem(path, unknown_key(str(location[-1]), fields_at(model, location[:-1], by_alias)))
        elif item["type"] == "missing":
            yield Problem(path, "required")
        elif item["type"] == "json_invalid":  # its input is the whole text
            yield Problem(path, f"not JSON: {item['ctx']['error']}")
        else:
            found = item["input"]
            value = "" if isinstance(found, dict | list) else f", found {shown(found)}"
            yield Problem(path, f"{_in_words(item)}{value}")


_KINDS = {
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "dict_type": "a mapping (key: value)",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "finite_number": "a finite number",
}
"""What a value must be, where pydantic says it in Python's words."""


def _in_words(item: ErrorDetails) -> str:
    if kind := _KINDS.get(item["type"]):
        return f"must be {kind}"
    message = item["msg"].removeprefix("Value error, ")
    message = message.removeprefix("Input ").replace("should be", "must be", 1).replace("should have", "must have", 1)
    return message[0].lower() + message[1:]


def shown(value: Any) -> str:
    """A wrong value as a message quotes it."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def dotted(location: Location) -> str:
    """("spec", "rules", 0, "action") → "spec.rules[0].action"."""
    text = ""
    for key in location:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def unknown_key(name: str, known: Iterable[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key; {hint}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that is most like this one, if any is (1: the same)."""
    return next(iter(difflib.get_close_matches(name[:200], sorted(known), n=1, cutoff=cutoff)), None)


def fields_at(model: type[BaseModel], location: Location, by_alias: bool = True) -> list[str]:
    """Keys that the model knows at this place of the document."""
    for key in location:
        if isinstance(key, int):
            continue
        for name, field in model.model_fields.items():
            if key in (field.alias, name):
                nested = _nested_model(field.annotation)
                if nested is None:
                    return []
                model = nested
    return [(by_alias and field.alias) or name for name, field in model.model_fields.items()]


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _nested_model(argument):
            return found
    return None
