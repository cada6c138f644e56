"""``visionrl jobs``: the jobs of a cluster or of this machine."""

from __future__ import annotations

import argparse
from typing import get_args

from visionrl.job import Component
from visionrl_cli.extras import needed_packages
from visionrl_cli.places.choice import WHERE, add_place

DESCRIPTION = f"""List, show, suspend, resume and cancel jobs.

suspend frees a job's pods (or processes) and GPUs; resume continues from its last checkpoint. cancel does what suspend
does and records it as the job's end; its volumes, checkpoints, adapters and metrics stay (kubectl delete vrl NAME
deletes a job with what was made for it). None of them asks.

{WHERE}
"""
EXAMPLES = """examples:
  visionrl jobs list                             runs/ of this machine
  kubectl visionrl jobs list --json | jq -r '.[] | select(.phase == "Failed") | .metadata.name'
  visionrl jobs get crafter-tiny
  kubectl visionrl jobs logs crafter --follow --component inference
  visionrl jobs metrics crafter-tiny --json | jq .reward
  kubectl visionrl jobs suspend crafter
"""

ACTIONS = {
    "list": "all jobs",
    "get": "state, progress, components, conditions and attempts of one job",
    "logs": "a component's log",
    "metrics": "numbers of all iterations; in a cluster through kubectl, and of the last one where no trainer runs",
    "timeline": "what happened, oldest first",
    "cancel": "end a job and keep its results",
    "suspend": "free a job's resources for now",
    "resume": "continue a suspended or cancelled job",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    for name, text in ACTIONS.items():
        sub = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name != "list":
            sub.add_argument("job", metavar="JOB", help="name of the job")
        if name in ("list", "get", "metrics", "timeline"):
            sub.add_argument("--json", action="store_true", help="print JSON")
        if name == "logs":
            sub.add_argument(
                "--component", choices=get_args(Component), default="trainer", help="whose log (default: trainer)"
            )
            sub.add_argument("--follow", "-f", action="store_true", help="go on until the component ends")
            sub.add_argument("--tail", metavar="N", type=_count, help="the last N lines (default: all)")
            sub.add_argument("--previous", action="store_true", help="of the container before its last restart")
        add_place(sub)


def command(options: argparse.Namespace) -> int:
    with needed_packages("jobs"):
        from visionrl_cli.places.actions import act
    return act(options)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)
