"""One file on its way from the reference's keys to ours: what was read, what it became, what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from visionrl.documents import Lines
from visionrl.problems import Problem, nearest_line, shown, unknown_key

T = TypeVar("T")


@dataclass(frozen=True)
class Note:
    """A key that means something else here, or nothing."""

    key: str
    """In the reference's file."""
    text: str
    path: str = ""
    """In our document, where the key has a place there."""


@dataclass
class Conversion:
    """The tables of a file; our values, notes and problems as they are found.

    Keys are asked for by their dotted names. A key that nobody asked for is unknown.
    """

    data: Mapping[str, Any]
    lines: Lines = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """By dotted path of our document."""
    origins: dict[str, str] = field(default_factory=dict)
    """By dotted path of our document: the key that the value comes from."""
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    """Keys that were asked for."""

    # --- reading

    def raw(self, key: str) -> Any:
        """A value of any type; None where the key is absent."""
        self.known.add(key)
        found: Any = self.data
        for name in key.split("."):
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        return found

    def has(self, key: str) -> bool:
        return self.raw(key) is not None

    def text(self, key: str) -> str | None:
        return self._typed(key, lambda value: value if isinstance(value, str) else None, "a text")

    def flag(self, key: str) -> bool | None:
        return self._typed(key, lambda value: value if isinstance(value, bool) else None, "true or false")

    def integer(self, key: str) -> int | None:
        return self._typed(key, lambda value: value if type(value) is int else None, "an integer")

    def number(self, key: str) -> float | None:
        return self._typed(key, _number, "a finite number")

    def texts(self, key: str) -> list[str] | None:
        return self._typed(key, lambda value: _all(value, str), "a list of texts")

    def integers(self, key: str) -> list[int] | None:
        return self._typed(key, lambda value: _all(value, int), "a list of integers")

    def table(self, key: str) -> Mapping[str, Any]:
        """A table whose keys are anybody's; empty where it is absent."""
        found = self._typed(key, lambda value: value if isinstance(value, Mapping) else None, "a table")
        self.known.update(f"{key}.{name}" for name in found or ())
        return found or {}

    def agreed(self, read: Callable[[str], T | None], *keys: str) -> tuple[T | None, str]:
        """The value that stands at one or several keys, and the first of them that has it. Two values are refused."""
        given = [(key, value) for key in keys if (value := read(key)) is not None]
        for key, value in given[1:]:
            if value != given[0][1]:
                self.refuse(key, f"is {shown(value)}, but {given[0][0]} is {shown(given[0][1])}; write one of them")
        return (given[0][1], given[0][0]) if given else (None, keys[0])

    def _typed(self, key: str, check: Callable[[Any], T | None], words: str) -> T | None:
        value = self.raw(key)
        if value is None:
            return None
        checked = check(value)
        if checked is None:
            self.refuse(key, f"must be {words}, found {shown(value)}")
        return checked

    # --- writing

    def put(self, path: str, value: Any, key: str, note: str = "") -> None:
        """A value of our document, and the key that it comes from; None puts nothing."""
        if value is None:
            return
        self.values[path], self.origins[path] = value, key
        if note:
            self.notes.append(Note(key, note, path))

    def note(self, key: str, text: str) -> None:
        """What is to be known of a key that has no place here; nothing where it is absent."""
        if self.has(key):
            self.notes.append(Note(key, text))

    def refuse(self, key: str, message: str) -> None:
        self.problems.append(Problem(key, message))

    def require(self, *keys: str) -> None:
        """One of these keys must be there."""
        if not any(self.has(key) for key in keys):
            self.refuse(keys[0], "required" + (f", or {' or '.join(keys[1:])}" if keys[1:] else ""))

    def only(self, key: str, accepted: Sequence[Any], advice: str) -> None:
        """Refuse any value but these; an absent key is one of them."""
        value = self.raw(key)
        if value is not None and not any(value == each and isinstance(value, bool) == isinstance(each, bool)
                                         for each in accepted):  # fmt: skip
            self.refuse(key, f"is {shown(value)}: {advice}")

    # --- the end

    def unknown(self) -> list[Problem]:
        """Keys that nobody asked for, with the nearest that somebody did."""
        return list(self._unknown(self.data, ""))

    def _unknown(self, table: Mapping[str, Any], prefix: str) -> Any:
        siblings = {key.removeprefix(prefix).split(".")[0] for key in self.known if key.startswith(prefix)}
        for name, value in table.items():
            key = f"{prefix}{name}"
            if name not in siblings:
                yield Problem(key, unknown_key(str(name), siblings))
            elif isinstance(value, Mapping) and key not in self.known:
                yield from self._unknown(value, f"{key}.")
            elif not isinstance(value, Mapping) and key not in self.known:
                yield Problem(key, f"must be a table, found {shown(value)}")

    def document(self) -> dict[str, Any]:
        """Our document, nested."""
        root: dict[str, Any] = {}
        for path, value in self.values.items():
            *parents, last = path.split(".")
            inner = root
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[last] = value
        return root

    def translated(self, problem: Problem) -> Problem:
        """A problem of our document as one of the key that it comes from."""
        path = problem.path
        while path and path not in self.origins:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        if not path:
            return problem
        return Problem(self.origins[path], f"{problem.message} ({problem.path})")

    def line(self, key: str) -> int | None:
        return nearest_line(key, self.lines)


def _number(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _all(value: Any, kind: type[T]) -> list[T] | None:
    return value if isinstance(value, list) and all(type(each) is kind for each in value) else None
