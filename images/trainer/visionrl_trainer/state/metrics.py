"""A run's numbers over time: one JSON object a line, readable while it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionrl.durable import write_atomically

Record = dict[str, Any]


class MetricsFile:
    """Lines in the order of ``index``, a key that every record has."""

    def __init__(self, path: Path, index: str) -> None:
        self.path, self.index = path, index

    def records(self) -> list[Record]:
        """All complete lines; one that a crash cut off is left out."""
        return list(self._lines())

    def append(self, record: Record) -> None:
        """Add one line, on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rewind(self, last: int) -> None:
        """Drop lines beyond this index: what a killed attempt did after its last checkpoint is done again."""
        kept = [record for record in self._lines() if record[self.index] <= last]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def _lines(self) -> Iterator[Record]:
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:
                continue
