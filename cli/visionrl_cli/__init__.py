"""The `visionrl` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from visionrl_cli import convert, eval, filter, render, run, train, validate

DESCRIPTION = """Let a vision-language model learn by playing.

One file describes a job: the model, the environment, the training. The same file runs on this machine
(visionrl run) and, with the operator, in a Kubernetes cluster (kubectl apply).
"""

EXAMPLES = """examples:
  visionrl validate configs/*.yaml               check files, every problem with its line
  visionrl run configs/crafter-tiny.yaml         train on this machine; repeat it to resume after Ctrl-C
  visionrl train --config job.yaml --data data/train.jsonl   supervised training alone
  visionrl eval --run runs/crafter-tiny --seeds 0-299   score what was trained
  visionrl render configs/crafter-tiny.yaml      print the Kubernetes objects that the operator makes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as head, closed the pipe. Python's flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="visionrl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter)
    top.add_argument("--version", action="version", version=f"visionrl {version('visionrl')}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (run, train, eval, filter, validate, render, convert):
        sub = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=formatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(command=module.command)
    return top
