"""A file of the reference system as a job document: one entry for both kinds of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionrl.documents import Lines
from visionrl.reference.conversion import Conversion
from visionrl.reference.rl import convert_rl
from visionrl.reference.sft import FindData, convert_sft

OTHER_FILES = {
    "eval": "is a file of an evaluation: visionrl eval --config FILE",
    "filter": "is a file of visionrl filter: visionrl filter --config FILE",
}


def convert_job(
    data: Mapping[str, Any], lines: Lines, name: str, find_data: FindData = lambda path: None
) -> Conversion:
    """The job that a training file describes; what is wrong with the file is in ``problems``, in the order of its
    lines. ``name`` is the job's where the file names none."""
    file = Conversion(data, lines)
    for table, told in OTHER_FILES.items():
        if table in data and "algorithm" not in data:
            file.refuse(table, told)
            return file
    kind, method = file.text("algorithm.type"), file.text("algorithm.method")
    if kind not in ("online", "offline"):
        file.refuse("algorithm.type", "required: online for reinforcement learning, offline for sft")
        return file
    if kind == "offline" or method == "sft":
        convert_sft(file, name, find_data)
    else:
        convert_rl(file, name)
    if kind == "online" and method == "sft":
        file.refuse("algorithm.type", "is 'online', but method is sft; write offline")
    file.problems += file.unknown()
    file.problems.sort(key=lambda problem: file.line(problem.path) or 0)
    return file


def data_finder(folder: Path) -> FindData:
    """Finds data files from a folder or, as the reference does, from the current one."""

    def find(path: str) -> tuple[str, int] | None:
        for place in (folder / Path(path).expanduser(), Path(path)):
            if place.is_file():
                with place.open("rb") as file:
                    lines = sum(1 for line in file if line.strip())
                return (path if place != Path(path) else str(place.absolute())), lines
        return None

    return find
