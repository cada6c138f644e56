"""``visionrl jobs``: the jobs of a cluster or of this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from visionrl.job import Component
from visionrl_cli.places.choice import WHERE, add_place, place_of

if TYPE_CHECKING:
    from visionrl_cli.places.place import Place

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
    "metrics": "numbers of the iterations; in a cluster those of the last one",
    "timeline": "what happened, oldest first",
    "cancel": "end a job and keep its results",
    "suspend": "free a job's resources for now",
    "resume": "continue a suspended or cancelled job",
}
METRICS = ("iteration", "reward", "entropy", "mismatch_kl", "mismatchKL", "grad_norm", "gradNorm")


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
    from visionrl_cli.places.place import PlaceError

    try:
        _COMMANDS[options.action](place_of(options), options)
    except PlaceError as error:
        print(f"visionrl: {error}", file=sys.stderr)
        return 1
    return 0


def _list(place: Place, options: argparse.Namespace) -> None:
    from visionrl_cli.places.shown import LIST_HEAD, columns, list_row, now

    found = place.jobs()
    if options.json:
        _print_json([record.as_json() for record in found])
    elif not found:
        print(f"no jobs: {place.title}", file=sys.stderr)
    else:
        for line in columns([LIST_HEAD, *(list_row(record, now()) for record in found)]):
            print(line)


def _get(place: Place, options: argparse.Namespace) -> None:
    from visionrl_cli.places.shown import details, now

    record = place.job(options.job)
    if options.json:
        _print_json(record.as_json())
        return
    for line in details(record, now()):
        print(line)


def _logs(place: Place, options: argparse.Namespace) -> None:
    from visionrl_cli.places.place import Tail

    for line in place.logs(options.job, options.component, Tail(options.tail, options.follow, options.previous)):
        print(line, flush=options.follow)


def _metrics(place: Place, options: argparse.Namespace) -> None:
    from visionrl_cli.places.shown import columns

    found = place.metrics(options.job)
    if options.json:
        for record in found.records:
            print(json.dumps(record, ensure_ascii=False))
    elif not found.records:
        print(f"{options.job} has completed no iteration", file=sys.stderr)
    else:
        names = [name for name in METRICS if any(name in record for record in found.records)]
        rows = [[_number(record.get(name)) for name in names] for record in found.records]
        for line in columns([[name.upper() for name in names], *rows]):
            print(line)
    if not found.whole and found.records:
        print("of the last iteration; those of all are in metrics.jsonl of the run folder", file=sys.stderr)


def _timeline(place: Place, options: argparse.Namespace) -> None:
    from visionrl_cli.places.shown import timeline

    found = timeline(place.job(options.job), place.events(options.job))
    if options.json:
        _print_json([{"time": time, "text": text} for time, text in found])
        return
    for time, text in found:
        print(f"{time}  {text}")


def _change(done: str, change: Callable[[Place, str], None]) -> Callable[[Place, argparse.Namespace], None]:
    def action(place: Place, options: argparse.Namespace) -> None:
        change(place, options.job)
        print(f"{options.job}: {done}; {place.command(f'jobs get {options.job}')}")

    return action


_COMMANDS: dict[str, Callable[[Place, argparse.Namespace], None]] = {
    "list": _list,
    "get": _get,
    "logs": _logs,
    "metrics": _metrics,
    "timeline": _timeline,
    "cancel": _change("cancelled, its results are kept", lambda place, name: place.cancel(name)),
    "suspend": _change("suspended", lambda place, name: place.suspend(name)),
    "resume": _change("resumed", lambda place, name: place.resume(name)),
}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)
