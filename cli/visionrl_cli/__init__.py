"""The `visionrl` command."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": "run a job on this machine",
    "train": "supervised training on files",
    "eval": "play a policy on seeds and report scores",
    "compare": "compare two evaluations, paired by seed",
    "filter": "make supervised data from traces",
    "validate": "check job files",
    "render": "print the Kubernetes objects of a job",
    "convert": "print a file of the reference system as a job file",
}
"""What each command does; its module, ``visionrl_cli.<command>``, is imported only where the command is used."""

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
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser(next((word for word in words if word in COMMANDS), None)).parse_args(words)
    try:
        code = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as head, closed the pipe. Python's flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def parser(used: str | None) -> argparse.ArgumentParser:
    """All commands by name, and the flags of the one that is used."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="visionrl", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, formatter_class=formatter)
        if name == used:
            module = importlib.import_module(f"visionrl_cli.{name}")
            sub.description, sub.epilog = module.DESCRIPTION, module.EXAMPLES
            module.add_arguments(sub)
            sub.set_defaults(command=module.command)
    return top


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"visionrl {version('visionrl')}")
        parser.exit()
