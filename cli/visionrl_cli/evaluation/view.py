"""The output of an evaluation: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from visionrl.seeds import seeds_text
from visionrl_cli.evaluation.results import Comparison, Results
from visionrl_cli.evaluation.text import duration, signed, verdict
from visionrl_local.text import score_text
from visionrl_local.view import is_live

PLAIN_LINES = 10
"""Progress lines of a whole evaluation where there is no terminal."""
FIRST_ESTIMATE = 20
"""Episodes after which the time that is left is told."""


class View(Protocol):
    """Where an evaluation in progress is shown."""

    def note(self, text: str) -> None: ...

    def played(self, done: int, mean: float) -> None: ...

    def close(self) -> None: ...


def choose_view(total: int) -> View:
    console = Console(stderr=True, highlight=False)
    return LiveView(total, console) if is_live(console) else PlainView(total)


class PlainView:
    """Ten lines in total, where there is no terminal, and one as soon as there is something to tell the time from."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began: tuple[float, int] | None = None
        """When the first episode of this session ended, and how many were done then."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def played(self, done: int, mean: float) -> None:
        now = time.monotonic()
        self._began = self._began or (now, done)
        began, before = self._began
        first_estimate = done == before + FIRST_ESTIMATE
        if (
            done == self._total
            or first_estimate
            or done * PLAIN_LINES // self._total > ((done - 1) * PLAIN_LINES // self._total)
        ):
            left = (self._total - done) * (now - began) / max(1, done - before)
            about = f", about {duration(left)} left" if done >= before + FIRST_ESTIMATE and done < self._total else ""
            self.note(f"{done}/{self._total} episodes, a mean return of {mean:.2f} so far{about}")

    def close(self) -> None:
        pass


class LiveView:
    """A progress bar."""

    def __init__(self, total: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def note(self, text: str) -> None:
        self._progress.update(self._task, description=text.splitlines()[0])

    def played(self, done: int, mean: float) -> None:
        self._progress.update(self._task, completed=done, description=f"return {mean:.2f}")

    def close(self) -> None:
        self._progress.stop()


def show(results: Results) -> None:
    """The table on standard output."""
    console = Console(highlight=False)
    seeds = seeds_text(tuple(results.seeds))
    console.print(f"{results.policy} on {len(results.seeds)} seeds ({seeds})", soft_wrap=True, markup=False)
    table = Table(show_header=False)
    for name, value in rows(results):
        table.add_row(name, value)
    console.print(table)
    rates = Table("event", "episodes")
    for name, rate in results.rates.items():
        rates.add_row(name, f"{100 * rate:.1f} %")
    if results.rates:
        console.print(rates)
    if results.comparison:
        for line in comparison_lines(results.comparison):
            console.print(line, soft_wrap=True, markup=False)


def rows(results: Results) -> list[tuple[str, str]]:
    """Names and values of the table."""
    found = [("return, mean [95 % CI]", score_text(results.score))]
    if results.crafter_score is not None:
        found = [
            ("unique achievements, mean [95 % CI]", score_text(results.score)),
            ("Crafter score", f"{results.crafter_score:.2f} %"),
        ]
    if results.progress is not None:
        found.append(("progress as in BALROG", f"{score_text(results.progress)} %"))
    found += [
        *((name, f"{value:.2f}") for name, value in results.scores.items()),
        ("environment return", score_text(results.env_return)),
        ("length, environment steps", score_text(results.length)),
        ("invalid answers", f"{100 * results.invalid_rate:.1f} %"),
    ]
    if results.aborted:
        reasons = ", ".join(f"{count} {reason}" for reason, count in results.aborted.items())
        found.append(("aborted, counted with what they reached", reasons))
    if results.episodes_per_minute is not None:
        found.append(("episodes per minute", f"{results.episodes_per_minute:.0f}"))
    return found


def comparison_lines(comparison: Comparison) -> list[str]:
    gain = comparison.gain
    lines = [
        f"against {comparison.policy} ({comparison.file}): {score_text(comparison.score)}",
        f"paired gain: {signed(gain)} on {gain.episodes} seeds: {verdict(gain)}",
    ]
    if comparison.differs:
        changed = (f"{name} {there} → {here}" for name, (there, here) in comparison.differs.items())
        lines.append(f"settings that differ: {', '.join(changed)}")
    return lines
