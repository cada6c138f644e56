"""Watching a job until it ends, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from visionrl_cli.places.chart import ChartView
from visionrl_cli.places.place import JobRecord, Place, PlaceError
from visionrl_local.view import JsonView, PlainView, View, is_live

GIVE_UP_AFTER = 30
"""Looks in a row that failed: then the place is not there any more."""


def choose_view(name: str, as_json: bool, form: str) -> View:
    """Lines, a chart of the reward (on a terminal), or JSON events."""
    if as_json:
        return JsonView()
    console = Console(highlight=False)
    return ChartView(name, console) if form == "chart" and is_live(console) else PlainView(console)


def watch(
    place: Place,
    name: str,
    view: View,
    interval: float,
    limit: float | None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobRecord:
    """Show each change until the job has ended or ``limit`` seconds have passed; the job as it was seen last.

    A place that cannot be asked for a while is asked again. Raises :class:`PlaceError` where it stays away.
    """
    end = None if limit is None else clock() + limit
    failures, record = 0, None
    try:
        while True:
            try:
                record, failures = place.job(name), 0
                view.status(record.status)
            except PlaceError as error:
                failures += 1
                if record is None or failures == GIVE_UP_AFTER:
                    raise
                if failures == 1:
                    view.note(f"{error}; trying again")
            if record is not None and record.ended and not failures:
                return record
            if record is not None and end is not None and not clock() < end:
                return record
            sleep(interval if end is None else min(interval, max(end - clock(), 0.01)))
    finally:
        view.close()
