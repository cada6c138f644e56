"""A file of ``filter`` with the reference's names: those that mean the same, and those that need a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from visionrl.problems import Problem
from visionrl.reference.conversion import Note

NAMES = {
    "filter": {
        "db": "input_db",
        "min_steps_per_episode": "min_steps",
        "max_steps_per_episode": "max_steps",
        "min_achievements_per_episode": "min_achievements",
    },
    "split": {"val_fraction": "val", "random_seed": "seed"},
}
"""By section: the reference's name of a key, and ours. Both are taken."""


def with_our_names(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Note], list[Problem]]:
    """The tables with our names, what is to be known, and what is wrong. Tables of other kinds stay as they are."""
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in data.items()}
    notes: list[Note] = []
    problems: list[Problem] = []
    for section, names in NAMES.items():
        table = tables.get(section)
        if not isinstance(table, dict):
            continue
        for theirs, ours in names.items():
            if theirs not in table:
                continue
            if ours in table:
                problems.append(Problem(f"{section}.{theirs}", f"is the same as {ours}; write one of them"))
            table[ours] = table.pop(theirs)
    _split(tables, problems)
    _single_file(tables, notes, problems)
    _official_score(tables, notes, problems)
    return tables, notes, problems


def _split(tables: dict[str, Any], problems: list[Problem]) -> None:
    """``enabled = false`` is a validation share of 0."""
    split = tables.get("split")
    if not isinstance(split, dict) or "enabled" not in split:
        return
    enabled = split.pop("enabled")
    if not isinstance(enabled, bool):
        problems.append(Problem("split.enabled", "must be true or false"))
    elif not enabled:
        split["val"] = 0.0


def _single_file(tables: dict[str, Any], notes: list[Note], problems: list[Problem]) -> None:
    """``output`` names one file: no validation beside it."""
    selection = tables.get("filter")
    if not isinstance(selection, dict) or "output" not in selection:
        return
    output = selection.pop("output")
    if not isinstance(output, str) or not PurePath(output).name:
        problems.append(Problem("filter.output", "must be the path of a file"))
    elif "output_dir" in selection or isinstance(tables.get("split"), dict):
        problems.append(Problem("filter.output", "names one file: leave it out where there is output_dir or [split]"))
    else:
        path = PurePath(output)
        selection["output_dir"] = str(path.parent)
        tables["split"] = {"val": 0.0, "train_file": path.name, "val_file": f"{path.stem}.val{path.suffix}"}
        notes.append(Note("filter.output", "all lines are for training: for a validation file, write [split]"))


def _official_score(tables: dict[str, Any], notes: list[Note], problems: list[Problem]) -> None:
    """The official score is 1 for any achievement, and 0 without."""
    selection = tables.get("filter")
    if not isinstance(selection, dict) or "min_official_score" not in selection:
        return
    score = selection.pop("min_official_score")
    if type(score) not in (int, float) or not 0 <= score <= 1:
        problems.append(Problem("filter.min_official_score", "must be a number from 0 to 1"))
    elif "min_achievements" in selection:
        problems.append(Problem("filter.min_official_score", "is the same as min_achievements; write one of them"))
    else:
        selection["min_achievements"] = 1 if score > 0 else 0
        notes.append(
            Note("filter.min_official_score", "the score is 1 with any achievement: min_achievements says more")
        )
