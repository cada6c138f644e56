"""Text that somebody else wrote, as data: JSON, TOML and YAML within limits on size, nesting and expansion.

Any text is either read or refused with a :class:`DocumentError`: no other exception, no text of a few bytes that keeps
a reader busy for minutes or fills its memory.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

MAX_BYTES = 128 * 1024
"""Of a job or settings file. kubectl's own limit for an object is 256 KiB."""
MAX_DEPTH = 64
"""Mappings and lists inside each other."""
MAX_VALUES = 20_000
"""Of a YAML document, each alias counted as what it stands for."""
MAX_DOTS = 2_000
"""In a TOML file: memory grows with the square of a dotted key's length."""

Lines = dict[str, int]
"""Line, from 1, of every key and list item by its dotted path."""


class DocumentError(ValueError):
    """Text that cannot be read; the message is for its author. ``line`` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(message)


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a file, or of standard input for ``-``. Raises :class:`DocumentError`, or ``OSError``."""
    if path == Path("-"):
        content = sys.stdin.buffer.read(limit + 1)
    else:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise DocumentError(f"is larger than {limit // 1024} KiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise DocumentError("is not UTF-8 text") from None


# --- JSON


def parse_json(text: str | bytes) -> Any:
    """Standard JSON: no NaN, no infinities."""
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise DocumentError(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"not JSON: {error.msg}", error.lineno) from None
    except ValueError as error:  # bytes that are not UTF-8, integers of thousands of digits
        raise DocumentError(f"not JSON: {error}") from None
    _check_depth(value)
    return value


def _no_number(word: str) -> NoReturn:
    raise DocumentError(f"{word} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"{text[:40]} is too large a number")
    return value


# --- TOML


def parse_toml(text: str) -> tuple[dict[str, Any], Lines]:
    """The tables of a file, and the lines of its keys."""
    if text.count(".") > MAX_DOTS:
        raise DocumentError(f"has more than {MAX_DOTS} dots")
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise DocumentError(_TOO_DEEP) from None
    except ValueError as error:
        message, _, place = str(error).partition(" (at line ")
        line = place.split(",")[0]
        raise DocumentError(f"not TOML: {message}", int(line) if line.isdecimal() else None) from None
    _check_depth(data)
    return data, dict(_toml_lines(text))


_TABLE = re.compile(r"\s*\[\[?([^\[\]#]+)\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=")


def _toml_lines(text: str) -> Iterator[tuple[str, int]]:
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = _plain_key(match[1])
            yield table, number
        elif match := _KEY.match(line):
            yield f"{table}.{_plain_key(match[1])}".lstrip("."), number


def _plain_key(text: str) -> str:
    return ".".join(name.strip().strip("\"'") for name in text.split("."))


# --- YAML


def parse_yaml(text: str) -> tuple[Any, Lines]:
    """One YAML 1.2 document without duplicate keys, and the lines of its keys."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _ShallowComposer
    try:
        documents = [node for node in yaml.compose_all(text) if node is not None]
        if len(documents) != 1:
            separate = "; give each a file of its own" if documents else ""
            raise DocumentError(f"must have one document, found {len(documents)}{separate}")
        if _expanded_size(documents[0]) > MAX_VALUES:
            raise DocumentError(f"has more than {MAX_VALUES} values, those that aliases repeat included")
        return yaml.constructor.construct_document(documents[0]), dict(_yaml_lines(documents[0]))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = (error.problem or str(error)).strip()
        raise DocumentError(f"not YAML: {message}", mark.line + 1 if mark else None) from None
    except DocumentError:
        raise
    except (YAMLError, ValueError, TypeError, LookupError, OverflowError) as error:
        # Characters that YAML forbids, dates that do not exist, mappings as keys.
        raise DocumentError(f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise DocumentError(_TOO_DEEP) from None


class _ShallowComposer(Composer):
    """Stops at a depth that no job has, before the scanner's work grows with its square."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise DocumentError(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _expanded_size(document: Node) -> int:
    """Values of a document, each alias counted as what it stands for. Raises for an alias to what holds it."""
    open_nodes: set[int] = set()

    @functools.cache
    def size(node: Node) -> int:
        if id(node) in open_nodes:
            raise DocumentError("an alias stands inside what it stands for", node.start_mark.line + 1)
        open_nodes.add(id(node))
        total = 1 + sum(size(child) for child in _children(node))
        open_nodes.remove(id(node))
        return total

    return size(document)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _yaml_lines(node: Node, path: str = "") -> Iterator[tuple[str, int]]:
    named: list[tuple[str, Node, Node]] = []
    if isinstance(node, MappingNode):
        named = [(f"{path}.{key.value}" if path else str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, SequenceNode):
        named = [(f"{path}[{index}]", value, value) for index, value in enumerate(node.value)]
    for name, place, value in named:
        yield name, place.start_mark.line + 1
        yield from _yaml_lines(value, name)


# --- all of them

_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep"


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise DocumentError(_TOO_DEEP)
        level, depth = [child for each in level for child in _inner(each)], depth + 1


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []
