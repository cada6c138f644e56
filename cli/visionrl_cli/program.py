"""The commands by name, and what all of them share: flags, help, exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from visionrl_cli.interrupt import EXIT_INTERRUPTED, STOPPED, AtOnce

COMMANDS = {
    "init": "print a commented job file to start from",
    "validate": "check job files",
    "run": "run a job on this machine, in the foreground",
    "train": "start a job here or in a cluster and watch it; supervised training on files",
    "jobs": "list, show, suspend, resume and cancel jobs; their logs, metrics and timeline",
    "explain": "why a job waits or failed, and what to do",
    "eval": "play a policy on seeds and report scores",
    "compare": "compare two evaluations, paired by seed",
    "fetch": "download what a job has trained",
    "filter": "make supervised data from traces",
    "replay": "write a recorded episode as a GIF or a video",
    "task-app": "serve, deploy, ask or check a task app",
    "render": "print the Kubernetes objects of a job",
    "convert": "print a file of the reference system as a job file",
    "doctor": "check this machine and the cluster",
    "completion": "print a shell's completion script",
}
"""What each command does; its module in ``visionrl_cli.commands`` is imported only where it is used."""

DESCRIPTION = """Let a vision-language model learn by playing.

One file describes a job: the model, the environment, the training. The same file runs on this machine
(visionrl run) and, with the operator, in a Kubernetes cluster (kubectl apply).
"""

EXAMPLES = """examples:
  visionrl init > job.yaml                       a commented job file
  visionrl validate configs/*.yaml               check files, every problem with its line
  visionrl run configs/crafter-tiny.yaml         train on this machine; repeat it to resume after Ctrl-C
  visionrl train --type rl --config job.yaml --context gpu-cluster      train in a cluster
  kubectl visionrl jobs list                     the jobs of a cluster; visionrl jobs list: those of this machine
  visionrl explain crafter-tiny                  why it waits or failed, with the fix
  visionrl eval --run runs/crafter-tiny --seeds 0-299   score what was trained
  visionrl fetch crafter-tiny                    download the trained adapter

exit codes: 0 done, 1 it failed or something cannot be used, 2 wrong words, 3 still running, 130 Ctrl-C; docs/cli.md
"""


HINTS = {
    "'status'": "jobs: visionrl jobs list, jobs get NAME",
    "'history'": "visionrl jobs get NAME shows the attempts, jobs timeline NAME what happened",
    "'config'": "visionrl jobs get NAME --json shows the job itself",
    "ACTION: invalid choice: 'list'": "a task app is part of its job: visionrl jobs list",
    "--backend": "there is no service to send a job to: --context NAME names a cluster",
    "--env-file": "variables are read from the environment: set -a; . FILE; set +a",
}
"""What to write for words of the reference system that are none here, by what argparse says about them."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = next((text for words, text in HINTS.items() if words in message), None)
        super().error(f"{message}; {hint}" if hint else message)


def run(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command line; the exit code."""
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        with AtOnce():
            commands = parser([word for word in words if word in COMMANDS][:1], program)
        options = commands.parse_args(words)
        code: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as head, closed the pipe. Python's flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def parser(used: Collection[str], program: str = "visionrl") -> argparse.ArgumentParser:
    """All commands by name, and the flags of those that are used."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = Parser(prog=program, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, formatter_class=formatter, conflict_handler="resolve")
        sub.add_argument("--version", action=_Version, nargs=0, help=argparse.SUPPRESS)
        if name in used:
            module = importlib.import_module(f"visionrl_cli.commands.{name.replace('-', '_')}")
            sub.description, sub.epilog = module.DESCRIPTION, module.EXAMPLES
            module.add_arguments(sub)
            sub.set_defaults(
                command=module.command, name=name, usage_error=sub.error, in_cluster=program.startswith("kubectl")
            )
    return top


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"visionrl {version('visionrl')}")
        parser.exit()
