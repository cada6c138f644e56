"""The evidence as a folder: tables, pictures, and the records that they were made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.learn import figures, tables
from recipes.learn.evidence import gather
from recipes.learn.plan import Places, Step
from recipes.learn.runner import Record, read_record
from visionrl.durable import write_atomically

RECORDS = "records.json"
EPISODES = "episodes"
"""Details of every episode in a result: left out, nothing here is made from them."""


def read_records(places: Places, steps: Sequence[Step]) -> dict[str, Record]:
    """Of the steps that have been tried, in their order."""
    found = {step.name: read_record(places.record(step.name)) for step in steps}
    return {name: _without_episodes(record) for name, record in found.items() if record is not None}


def load_records(file: Path) -> dict[str, Record]:
    """Those that an earlier report kept. Raises ``OSError``, ``ValueError``."""
    return dict(json.loads(file.read_text(encoding="utf-8")))


def write_report(records: Mapping[str, Record], folder: Path) -> list[Path]:
    """Write ``results.md``, the pictures and ``records.json``; returns the files."""
    evidence = gather(records)
    pictures = figures.write_all(evidence, folder)
    write_atomically(folder / "results.md", tables.page(evidence))
    write_atomically(folder / RECORDS, _compact(records))
    return [folder / "results.md", *pictures, folder / RECORDS]


def _without_episodes(record: Record) -> Record:
    result: dict[str, Any] | None = record["result"]
    if result is None:
        return record
    return {**record, "result": {name: value for name, value in result.items() if name != EPISODES}}


def _compact(records: Mapping[str, Record]) -> str:
    """A line a step, so that a later run's changes can be seen."""
    lines = (f"{json.dumps(name)}: {json.dumps(record, separators=(',', ':'))}" for name, record in records.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
