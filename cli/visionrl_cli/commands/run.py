"""``visionrl run``: a job on this machine."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from visionrl.jobfile import JobFileError, read_job_file
from visionrl.problems import Problem, located
from visionrl_cli.extras import needed_packages

DESCRIPTION = """Run a job on this machine: task app, inference and trainer as processes.

The containers of the operator's pods run here as processes, with the same commands, environments and probes. All
files of a run are in RUNS/<job>/: report.html, logs/, metrics.jsonl, checkpoints/, adapters/, summary.json,
status.json.

Ctrl-C stops all components in order; the same command resumes from the last checkpoint. While a job runs,
training.iterations, evaluation, lifecycle, failurePolicy and suspend may be changed in the file. Exit code 0 when the
job is complete, 1 when it failed, 130 after Ctrl-C.
"""
EXAMPLES = """examples:
  visionrl run configs/crafter-tiny.yaml
  visionrl run --fresh configs/crafter-tiny.yaml         start over
  visionrl run --json job.yaml | jq -r .status.phase     one event per line
  visionrl run --port 9000 job.yaml                      components on 9000, 9001, 9002
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="job file, or a training file of the reference system (TOML)"
    )
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="run folders (default: runs)")
    parser.add_argument("--port", metavar="BASE", type=_port, help="first of three ports (default: free ones)")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="delete what earlier runs made there (listed; asked for on a terminal), start over",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON event per line")


def command(options: argparse.Namespace) -> int:
    with needed_packages("run"):
        from visionrl_local.run import RunOptions, run
    warn(options.file)
    return run(
        RunOptions(options.file, runs=options.runs, port=options.port, fresh=options.fresh, as_json=options.json)
    )


def warn(file: Path) -> None:
    """Say what is probably not meant. What is wrong is told by the run itself."""
    if file == Path("-"):  # can be read once only
        return
    with contextlib.suppress(JobFileError, OSError):
        found = read_job_file(file)
        for problem in found.warnings:
            warning = Problem(problem.path, f"warning: {problem.message}")
            print(located(warning, found.source, found.lines), file=sys.stderr)


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65533:
        raise argparse.ArgumentTypeError("must be between 1 and 65533")
    return port
