"""The output of supervised training: progress on standard error, or JSON events on standard output."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from visionrl_local.view import emit, is_live
from visionrl_trainer.sft.train import SftReport

PLAIN_LINES = 20
"""Progress lines of a whole training, where there is no terminal."""


class View(Protocol):
    """Where a training in progress is shown."""

    def note(self, text: str) -> None: ...

    def progress(self, report: SftReport) -> None: ...

    def close(self) -> None: ...


def choose_view(steps: int, as_json: bool) -> View:
    if as_json:
        return JsonView()
    console = Console(stderr=True, highlight=False)
    return LiveView(steps, console) if is_live(console) else PlainView()


class JsonView:
    """One event per line."""

    def note(self, text: str) -> None:
        emit("note", text=text)

    def progress(self, report: SftReport) -> None:
        emit("progress", **asdict(report))

    def close(self) -> None:
        pass


class PlainView:
    """Twenty lines in total, and one for each validation loss, where there is no terminal."""

    def __init__(self) -> None:
        self._shown = 0

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def progress(self, report: SftReport) -> None:
        lines = report.step * PLAIN_LINES // report.steps
        if lines > self._shown or report.validation_loss is not None:
            self._shown = lines
            self.note(f"{report.line()}, {report.decisions_per_second:.0f} decisions/s")

    def close(self) -> None:
        pass


class LiveView:
    """A progress bar; notes and validation losses scroll above it."""

    def __init__(self, steps: int, console: Console) -> None:
        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=steps)
        self._progress.start()

    def note(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True, markup=False)

    def progress(self, report: SftReport) -> None:
        text = f"loss {report.loss:.3f}, {report.decisions_per_second:.0f} decisions/s"
        self._progress.update(self._task, completed=report.step, description=text)
        if report.validation_loss is not None:
            self.note(report.line())

    def close(self) -> None:
        self._progress.stop()


def show(summary: dict[str, Any]) -> None:
    """The result and how to use it, on standard output."""
    validation = summary["validation_loss"]
    held_out = "" if validation is None else f", validation loss {validation:.3f}"
    print(f"complete: {summary['steps']} steps, loss {summary['loss']:.3f}{held_out} nats per decision")
    if summary["model"]:
        print(f"model: {summary['model']}")
        print(f"  in a job file:  model: {{base: {summary['model']}, supportsVision: true}}")
        print(f"  with vLLM:      vllm serve {summary['model']}")
    else:
        print(f"adapter: {summary['adapter']}")
        print(f"  with vLLM:      vllm serve {summary['base']} --enable-lora --max-lora-rank {summary['rank']} \\")
        print(f"                    --lora-modules {summary['job']}={summary['adapter']}")
