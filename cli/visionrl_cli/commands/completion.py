"""``visionrl completion``: what a shell needs to complete commands and flags."""

from __future__ import annotations

import argparse

DESCRIPTION = """Print a completion script for a shell. Completing starts no program; print it anew after an upgrade.
"""
EXAMPLES = """examples:
  mkdir -p ~/.local/share/bash-completion/completions
  visionrl completion bash > ~/.local/share/bash-completion/completions/visionrl
  visionrl completion zsh > ~/.zsh/functions/_visionrl        # a folder in $fpath
  kubectl visionrl completion bash > ~/.local/share/bash-completion/completions/kubectl-visionrl
"""
SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def command(options: argparse.Namespace) -> int:
    import shtab

    from visionrl_cli.program import COMMANDS, parser

    program = "kubectl-visionrl" if options.in_cluster else "visionrl"
    print(shtab.complete(parser(COMMANDS, program), options.shell))
    return 0
