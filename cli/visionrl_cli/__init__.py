"""The `visionrl` command; `kubectl visionrl` is the same program."""

from __future__ import annotations

from collections.abc import Sequence

from visionrl_cli.interrupt import AtOnce


def main(arguments: Sequence[str] | None = None, program: str = "visionrl") -> int:
    """Run the command line; the exit code."""
    with AtOnce():
        from visionrl_cli.program import run
    return run(arguments, program)


def kubectl() -> int:
    """The program ``kubectl-visionrl``, which kubectl runs as ``kubectl visionrl``: jobs are in the cluster."""
    return main(program="kubectl visionrl")
