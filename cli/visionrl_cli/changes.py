"""``--set KEY=VALUE`` and the like: a job file under values of the command line, or such values alone."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionrl.documents import DocumentError, parse_yaml
from visionrl.jobfile import JobFile, JobFileError, parse_job_file, read_job_file
from visionrl.reference.shared import job_name

NO_FILE = """apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata: {{name: {name}}}
spec:
  training: {{iterations: 1}}
"""


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=assignment,
        action="append",
        default=[],
        help="a value of the spec, such as training.groupSize=4; takes precedence over the file's; may be repeated",
    )


def assignment(text: str) -> tuple[str, Any]:
    """ "training.groupSize=4" → path below ``spec``, and the value as YAML reads it."""
    key, equals, value = text.partition("=")
    path = key.removeprefix("spec.")
    if not equals or not all(part for part in path.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r}: give KEY=VALUE, such as training.groupSize=4")
    try:
        return path, parse_yaml(f"value: {value}\n")[0]["value"]
    except DocumentError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def job_file(path: Path | None, changes: Mapping[str, Any], train_data: Path | None = None) -> JobFile:
    """The job of a file under these changes; without a file, that of its model alone, named after it. Raises what
    :func:`visionrl.jobfile.read_job_file` raises."""
    if path is not None:
        return read_job_file(path, train_data, changes)
    name = job_name(Path(str(changes.get("model.base", "job"))).name)
    try:
        return parse_job_file(NO_FILE.format(name=name), "visionrl", Path(), changes)
    except JobFileError as error:
        raise JobFileError("visionrl", error.problems) from None  # its lines are nobody's
