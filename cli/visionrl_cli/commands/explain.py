"""``visionrl explain``: why a job waits or failed."""

from __future__ import annotations

import argparse
import json
import sys

from visionrl_cli.extras import needed_packages
from visionrl_cli.places.choice import WHERE, add_place, place_of

DESCRIPTION = f"""Say why a job waits or failed, and what to do: from its conditions, attempts, components and events.

{WHERE}
"""
EXAMPLES = """examples:
  visionrl explain crafter-tiny
  kubectl visionrl explain crafter -n team
  kubectl visionrl explain crafter --json | jq -r '.causes[].fix'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="name of the job")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_place(parser)


def command(options: argparse.Namespace) -> int:
    with needed_packages("explain"):
        from visionrl_cli.places.explanation import explain
        from visionrl_cli.places.place import PlaceError

    try:
        place = place_of(options)
        record = place.job(options.job)
        headline, causes = explain(record, place.events(options.job), place.command)
    except PlaceError as error:
        print(f"visionrl: {error}", file=sys.stderr)
        return 1
    if options.json:
        found = [{"what": cause.what, "fix": cause.fix} for cause in causes]
        print(json.dumps({"job": record.name, "phase": record.phase, "causes": found}, indent=2, ensure_ascii=False))
        return 0
    print(headline)
    for cause in causes:
        print(f"- {cause.what}")
        if cause.fix:
            print(f"  to do: {cause.fix}")
    if not causes and not record.status.finished:
        print("nothing is wrong; it goes on by itself")
    return 0
