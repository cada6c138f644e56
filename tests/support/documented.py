"""The shell commands of the documentation: fences of the language ``sh``, and what is said of them below."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *ROOT.glob("examples/*/*.md"),
]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
MARK = "Not run by the tests:"
PARAGRAPH = re.compile(rf"\s*{MARK} (.+?)(?=\n\s*\n|\Z)", re.DOTALL)
"""Follows a fence: names in backticks the beginnings of commands, or none for all, and in parentheses says why."""
OPERATORS = ("|", "||", "&&", ";", "&")
KEYWORDS = ("for", "done")


@dataclass(frozen=True)
class Line:
    """A line as a shell reads it: continuations joined."""

    page: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}: {self.text}"

    @cached_property
    def commands(self) -> list[list[str]]:
        """The words of each command in it, without redirections, loops and the folder of a program in ``.venv``."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found: list[list[str]] = [[]]
        words = iter(lexer)
        for word in words:
            if word in OPERATORS:
                found.append([])
            elif word == ">":
                next(words)
            else:
                found[-1].append(word.removeprefix(".venv/bin/"))
        commands = [words[1:] if words[:1] in (["do"], ["sudo"]) else words for words in found]
        return [words for words in commands if words and words[0] not in KEYWORDS]


@dataclass(frozen=True)
class Fence:
    """One block of a page."""

    page: Path
    number: int
    language: str
    text: str
    mark: str | None
    """What follows :data:`MARK` below it."""

    @cached_property
    def lines(self) -> list[Line]:
        number, found = self.number, []
        for text in re.split(r"(?<!\\)\n", self.text):
            number += 1
            if text.strip() and not text.lstrip().startswith("#"):
                found.append(Line(self.page, number, " ".join(text.replace("\\\n", " ").split())))
            number += text.count("\n")
        return found

    def is_marked(self, words: Sequence[str]) -> bool:
        """Whether the page says that this command is not run."""
        return self.mark is not None and (not self.marked or any(begins(words, each) for each in self.marked))

    @property
    def marked(self) -> list[list[str]]:
        """Beginnings of the commands that the mark names."""
        return [shlex.split(text) for text in re.findall(r"`([^`]+)`", re.sub(r"\(.*?\)", "", self.mark or ""))]


def begins(words: Sequence[str], beginning: Sequence[str]) -> bool:
    return list(words[: len(beginning)]) == list(beginning)


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        mark = PARAGRAPH.match(text, found.end())
        yield Fence(
            page,
            text.count("\n", 0, found.start()) + 1,
            found[2].strip(),
            textwrap.dedent(found[3]),
            " ".join(mark[1].split()) if mark else None,
        )
