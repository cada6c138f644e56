"""``python -m recipes.learn``: everything that docs/learning.md states, from random weights to pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.learn.plan import Places, Step, all_steps
from recipes.learn.runner import StepFailed, carry_out, is_done

DESCRIPTION = """Make the learning evidence: controls, a tiny model from random weights to supervised to reinforced,
its controls without sight, the ablations.

Every step is one visionrl command. It leaves RUNS/learn/<step>.json with what it cost and what it found, and is not
done again: after Ctrl-C or a crash the same command goes on. Deleting a step's file repeats that step.
"""
EXAMPLES = """examples:
  python -m recipes.learn                       all of it
  python -m recipes.learn --list                the steps, and which of them are done
  python -m recipes.learn --only main           the main run alone
  python -m recipes.learn --only ablations      a group of steps
"""


def parser(steps: Sequence[Step]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m recipes.learn",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = dict.fromkeys([*(step.group for step in steps), *(step.name for step in steps)])
    made.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="run folders (default: runs)")
    made.add_argument(
        "--only", metavar="STEP", nargs="+", choices=list(names), help=f"steps or groups: {', '.join(names)}"
    )
    made.add_argument("--list", action="store_true", help="show the steps, do nothing")
    return made


def chosen(steps: Sequence[Step], only: Sequence[str] | None) -> list[Step]:
    """The steps of these names and groups, in their order; all where none is named."""
    return [step for step in steps if not only or step.name in only or step.group in only]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(all_steps(Places())).parse_args(arguments)
    places = Places(options.runs)
    steps = chosen(all_steps(places), options.only)
    if options.list:
        for step in steps:
            print(f"{'done' if is_done(places.record(step.name)) else '    '}  {step.name:24} {step.about}")
        return 0
    try:
        carry_out(steps, places.record, lambda line: print(line, flush=True))
    except StepFailed as error:
        print(f"recipes.learn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
