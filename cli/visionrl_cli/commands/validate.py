"""``visionrl validate``: check job files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionrl.checks import runs_task_app
from visionrl.data.config import check_config
from visionrl.documents import DocumentError, Lines, parse_toml, read_text
from visionrl.job import DEFAULT_ENVIRONMENT, Rollout
from visionrl.jobfile import JobFileError, read_job_file
from visionrl.problems import Problem, located, nearest_line
from visionrl.reference.conversion import Note
from visionrl.reference.evaluation import convert_eval
from visionrl.reference.filter import with_our_names

DESCRIPTION = """Check job files: unknown keys, wrong types, values that contradict each other; and warn of settings
that are probably not meant. The reference system's TOML files are checked, too (visionrl convert shows what they mean).

All problems of a file are printed, as FILE:LINE: FIELD: MESSAGE. Exit code 0 when all files can be used, 1 otherwise.
"""
EXAMPLES = """examples:
  visionrl validate job.yaml
  kubectl get vrl demo -o yaml | visionrl validate -
  visionrl validate --json configs/*.yaml | jq '.[] | select(.ok | not)'
"""


@dataclass(frozen=True)
class Report:
    """What was found in one file."""

    file: str
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    lines: Lines = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "ok": not self.errors,
            "errors": [self._problem(problem) for problem in self.errors],
            "warnings": [self._problem(problem) for problem in self.warnings],
        }

    def _problem(self, problem: Problem) -> dict[str, Any]:
        line = nearest_line(problem.path, self.lines)
        return {"path": problem.path, "line": line, "message": problem.message}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="job file, or a TOML file of the reference system; - is standard input",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def command(options: argparse.Namespace) -> int:
    reports = [examine(file) for file in options.files]
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2, ensure_ascii=False))
    else:
        for report in reports:
            _print(report)
    return 1 if any(report.errors for report in reports) else 0


def examine(file: Path) -> Report:
    """Read and check one file."""
    try:
        settings = _settings(file) if file.suffix == ".toml" else None
        if settings is not None:
            return settings
        found = read_job_file(file)
    except JobFileError as error:
        return Report(str(file), errors=error.problems, lines=error.lines)
    except OSError as error:
        return Report(str(file), errors=[Problem("", error.strerror or str(error))])
    spec = found.job.spec
    errors = _environment(spec.rollout) if runs_task_app(spec) else []  # a server elsewhere has its own
    return Report(found.source, errors, found.warnings, found.lines)


def _environment(rollout: Rollout) -> list[Problem]:
    """What the environment itself says of its settings, where it is installed."""
    if rollout.env_name == DEFAULT_ENVIRONMENT:
        return []  # the contracts know its settings
    try:
        from visionrl_taskapp.envs.registry import EnvironmentRefused, prepare
    except ImportError:
        return []
    try:
        prepare(rollout.env_name, rollout.env_config)
    except EnvironmentRefused as error:
        if not error.missing:
            return [Problem(f"spec.rollout.{problem.path}", problem.message) for problem in error.problems]
    return []


def _settings(file: Path) -> Report | None:
    """The report of a TOML file of visionrl eval or filter; None for one of a training. Raises ``OSError``."""
    try:
        data, lines = parse_toml(read_text(file))
    except DocumentError:
        return None  # told by who reads it next
    if "algorithm" not in data and "filter" in data:
        return Report(
            str(file), errors=check_config(data, {})[1], warnings=_notes(with_our_names(data)[1]), lines=lines
        )
    if "algorithm" not in data and "eval" in data:
        conversion = convert_eval(data, lines)[1]
        return Report(str(file), errors=conversion.problems, warnings=_notes(conversion.notes), lines=lines)
    return None


def _notes(notes: Sequence[Note]) -> list[Problem]:
    return [Problem(note.key, note.text) for note in notes]


def _print(report: Report) -> None:
    for problem in report.errors:
        print(located(problem, report.file, report.lines), file=sys.stderr)
    for problem in report.warnings:
        warning = Problem(problem.path, f"warning: {problem.message}")
        print(located(warning, report.file, report.lines), file=sys.stderr)
    if not report.errors:
        print(f"{report.file}: ok")
