"""``python -m recipes.learn``: everything that docs/learning.md states, from random weights to pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.learn.plan import Places, Step, all_steps
from recipes.learn.report import load_records, read_records, write_report
from recipes.learn.runner import StepFailed, carry_out, is_done

DESCRIPTION = """Make the learning evidence: controls, a tiny model from random weights to supervised to reinforced,
its controls without sight, the ablations; then tables and pictures of what has been measured.

Every step is one visionrl command. It leaves RUNS/learn/<step>.json with what it cost and what it found, and is not
done again: after Ctrl-C or a crash the same command continues. Deleting a step's file repeats that step; deleting its
run folder as well repeats a training from its start.
"""
EXAMPLES = """examples:
  python -m recipes.learn                       all of it, the main run with three training seeds
  python -m recipes.learn --list                the steps, and which of them are done
  python -m recipes.learn --only main           the main run alone
  python -m recipes.learn --only ablations      a group of steps
  python -m recipes.learn --only seeds          the main run with the other two training seeds
  python -m recipes.learn --only report         tables and pictures of what there is
  python -m recipes.learn --records docs/learning/records.json --report docs/learning
                                                the pages of the documentation, from the figures that they state
"""
REPORT = "report"


def parser(steps: Sequence[Step]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m recipes.learn",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(dict.fromkeys([*(step.group for step in steps), *(step.name for step in steps), REPORT]))
    made.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="run folders (default: runs)")
    made.add_argument("--only", metavar="STEP", nargs="+", choices=names, help=f"steps or groups: {', '.join(names)}")
    made.add_argument("--list", action="store_true", help="show the steps, do nothing")
    made.add_argument("--report", metavar="DIR", type=Path, help="folder of the report (default: RUNS/learn/report)")
    made.add_argument(
        "--records", metavar="FILE", type=Path, help="run nothing: make the report from the records of an earlier one"
    )
    return made


def chosen(steps: Sequence[Step], only: Sequence[str] | None) -> list[Step]:
    """The steps of these names and groups, in their order; all where none is named."""
    if not only:
        return list(steps)
    return [step for step in steps if step.name in only or step.group in only]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(all_steps(Places())).parse_args(arguments)
    places = Places(options.runs)
    steps = all_steps(places)
    wanted = chosen(steps, options.only)
    if options.list:
        for step in wanted if options.only else steps:
            print(f"{'done' if is_done(places.record(step.name)) else '    '}  {step.name:24} {step.about}")
        return 0
    try:
        if options.records is None:
            carry_out(wanted, places.record, lambda line: print(line, flush=True))
        records = load_records(options.records) if options.records else read_records(places, steps)
    except (StepFailed, LookupError, OSError, ValueError) as error:
        print(f"recipes.learn: {error}", file=sys.stderr)
        return 1
    for file in write_report(records, options.report or places.root / "report"):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
