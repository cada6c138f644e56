"""``visionrl compare``: two evaluations, paired by seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from visionrl.jobfile import JobFileError
from visionrl_cli.extras import needed_packages

DESCRIPTION = """Compare two evaluations, as visionrl eval --out writes them: what B gains over A, paired by seed, with
95 % bootstrap intervals. The same seed is the same world with the same creatures, so that the interval of the
difference is narrower than those of the two scores. Only seeds that both were played on count.
"""
EXAMPLES = """examples:
  visionrl eval --run runs/crafter-tiny --base --seeds 0-299 --out before.json
  visionrl eval --run runs/crafter-tiny --seeds 0-299 --out after.json
  visionrl compare before.json after.json
  visionrl compare before.json after.json --json | jq '.differences.return.gain'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="results of the first evaluation")
    parser.add_argument("b", metavar="B", type=Path, help="results of the second one")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON document")


def command(options: argparse.Namespace) -> int:
    with needed_packages("compare", "operator,taskapp,trainer"):
        from visionrl_cli.evaluation.compare import compare, show
        from visionrl_cli.evaluation.text import EvalError
        from visionrl_local.view import refuse
    try:
        found = compare(options.a, options.b)
    except (EvalError, JobFileError, OSError) as error:
        refuse(error)
        return 1
    print(found.model_dump_json(indent=2)) if options.json else show(found)
    return 0
