"""A run's numbers over time: one JSON object per line, readable while it is written.

They are for people and for the report, so no error here ends a run: damaged lines are skipped, and a failure to write
is logged.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from visionrl.durable import fsync, write_atomically

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class MetricsFile:
    """Lines in the order of ``index``, an integer in every record. A line that lacks one of ``fields`` is skipped."""

    def __init__(self, path: Path, index: str, fields: Collection[str] = ()) -> None:
        self.path, self.index, self.fields = path, index, frozenset(fields)

    def records(self) -> list[Record]:
        """All undamaged records."""
        return list(self._records())

    def indices(self) -> set[int]:
        """Of all undamaged records."""
        return {record[self.index] for record in self._records()}

    def append(self, record: Record) -> None:
        """Add one line, on disk when this returns."""
        try:
            new = not self.path.exists()
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            if new:
                fsync(self.path.parent)
        except OSError as error:
            logger.warning("%s %s is not recorded: %s", self.index, record[self.index], error)

    def rewind(self, last: int) -> None:
        """Drop the lines beyond this index: a resumed run repeats what came after its last checkpoint."""
        kept = "".join(json.dumps(record) + "\n" for record in self._records() if record[self.index] <= last)
        try:
            if kept.encode() != self._content():
                write_atomically(self.path, kept)
        except OSError as error:
            logger.warning("%s cannot be rewritten: %s", self.path, error)

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            logger.warning("%s cannot be read: %s", self.path, error)
            return b""

    def _records(self) -> Iterator[Record]:
        *lines, rest = self._content().split(b"\n")
        for number, line in enumerate((*lines, *filter(None, [rest])), start=1):
            record = _parsed(line)
            if type(record.get(self.index)) is int and self.fields <= record.keys():
                yield record
            else:
                logger.warning("%s:%d is damaged and skipped", self.path, number)


def _parsed(line: bytes) -> Record:
    """The object of a line; empty if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
