"""The actions of ``visionrl jobs``: what is asked of a place, and what is printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from visionrl_cli.places.choice import place_of
from visionrl_cli.places.place import Place, PlaceError, Tail
from visionrl_cli.places.shown import LIST_HEAD, columns, details, list_row, now, timeline

METRICS = ("iteration", "reward", "entropy", "mismatch_kl", "mismatchKL", "grad_norm", "gradNorm")


def act(options: argparse.Namespace) -> int:
    """The exit code."""
    try:
        _ACTIONS[options.action](place_of(options), options)
    except PlaceError as error:
        print(f"visionrl: {error}", file=sys.stderr)
        return 1
    return 0


def _list(place: Place, options: argparse.Namespace) -> None:
    found = place.jobs()
    if options.json:
        _print_json([record.as_json() for record in found])
    elif not found:
        print(f"no jobs: {place.title}", file=sys.stderr)
    else:
        for line in columns([LIST_HEAD, *(list_row(record, now()) for record in found)]):
            print(line)


def _get(place: Place, options: argparse.Namespace) -> None:
    record = place.job(options.job)
    if options.json:
        _print_json(record.as_json())
        return
    for line in details(record, now()):
        print(line)


def _logs(place: Place, options: argparse.Namespace) -> None:
    for line in place.logs(options.job, options.component, Tail(options.tail, options.follow, options.previous)):
        print(line, flush=options.follow)


def _metrics(place: Place, options: argparse.Namespace) -> None:
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
    if found.missing and found.records:
        print(f"the last iteration alone, for its run folder cannot be read: {found.missing}", file=sys.stderr)


def _timeline(place: Place, options: argparse.Namespace) -> None:
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


_ACTIONS: dict[str, Callable[[Place, argparse.Namespace], None]] = {
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
