"""``visionrl convert``: a file of the reference system as a job file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionrl.jobfile import JobFileError, read_job_file
from visionrl.reference.text import as_yaml
from visionrl_cli.files import unusable

DESCRIPTION = """Print a training file of the reference system (TOML; RL or SFT) as a job file (YAML).

A comment stands at each key that means something else here, and at the top for each that has no place here. Every
other command takes the TOML file itself, too: what it does with it is what is printed.
"""
EXAMPLES = """examples:
  visionrl convert crafter_rl_vision_qwen3vl4b.toml > job.yaml
  visionrl convert rl.toml | kubectl apply -f -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.toml", type=Path, help="training file of the reference system")


def command(options: argparse.Namespace) -> int:
    try:
        found = read_job_file(options.file)
    except (JobFileError, OSError) as error:
        return unusable(options.file, error)
    if found.conversion is None:
        print(
            f"{options.file}: not a TOML file of the reference system (its name must end with .toml)", file=sys.stderr
        )
        return 1
    sys.stdout.write(as_yaml(found.conversion, options.file.name))
    return 0
