"""What ``visionrl run`` shows: a live table on a terminal, otherwise one line per change, or JSON events."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from visionrl.jobfile import JobFileError
from visionrl.status import ComponentStatus, JobStatus
from visionrl_core.clock import stamp
from visionrl_local.folder import LocalFolder, tail
from visionrl_local.text import evaluation_text, progress_line

PHASE_STYLES = {"Complete": "bold green", "Failed": "bold red", "Running": "green", "Restarting": "yellow"}

NAME_WIDTH, STATE_WIDTH = 11, 30
ONE_LINE_WIDTH = NAME_WIDTH + STATE_WIDTH + 30
"""Columns of a terminal from which a log's last event has room beside its component."""
EVENT_LINES = 100
"""Of a log, from its end, that are searched for an event."""


class View(Protocol):
    """Shows a run. The methods may be called at any time."""

    def status(self, status: JobStatus) -> None:
        """The status changed."""

    def note(self, text: str, tail: Sequence[str] = ()) -> None:
        """Show one line; ``tail`` is the end of a log."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def choose_view(job_name: str, folder: LocalFolder, as_json: bool) -> View:
    if as_json:
        return JsonView()
    console = Console(highlight=False)
    return LiveView(job_name, folder, console) if is_live(console) else PlainView(console)


def is_live(console: Console) -> bool:
    """Whether lines can be replaced in place: a pipe cannot, nor can a terminal with TERM=dumb."""
    return console.is_terminal and not console.is_dumb_terminal


class JsonView:
    """One event per line."""

    def status(self, status: JobStatus) -> None:
        emit("status", status=status.model_dump(mode="json", by_alias=True, exclude_none=True))

    def note(self, text: str, tail: Sequence[str] = ()) -> None:
        emit("note", text=text, tail=list(tail))

    def close(self) -> None:
        pass


def emit(event: str, **content: Any) -> None:
    """Write one JSON event."""
    print(json.dumps({"time": stamp(datetime.now(UTC)), "event": event, **content}, ensure_ascii=False), flush=True)


class PlainView:
    """One line for every change that matters to a reader of the output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def status(self, status: JobStatus) -> None:
        for component in status.components:
            if component.message != "NotCreated":
                self._line(component.name, component_text(component))
        if status.progress.iteration or evaluation_text(status):
            key = f"{status.progress.iteration} {evaluation_text(status)}"
            if self._shown.get("progress") != key:
                self._shown["progress"] = key
                self._print(progress_line(status))
        # While it runs, the reason is the trainer's report, which changes too often for a log.
        changing = status.phase in ("Running", "WarmStart", "Complete", "Failed")
        self._line("phase", status.phase if changing or not status.reason else f"{status.phase}: {status.reason}")

    def note(self, text: str, tail: Sequence[str] = ()) -> None:
        self._print(text)
        for line in tail:
            self._print(f"    {line}")

    def close(self) -> None:
        pass

    def _line(self, name: str, text: str) -> None:
        if self._shown.get(name) != text:
            self._shown[name] = text
            self._print(f"{name}: {text}")

    def _print(self, text: str) -> None:
        self._console.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, soft_wrap=True)


class LiveView:
    """A table that stays in place. Notes, and one line per iteration, scroll above it and stay."""

    def __init__(self, job_name: str, folder: LocalFolder, console: Console) -> None:
        self._job_name, self._folder, self._console = job_name, folder, console
        self._status = JobStatus()
        self._shown = ""
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
        self._live.start()

    def status(self, status: JobStatus) -> None:
        self._status = status
        done = f"{status.progress.iteration} {evaluation_text(status)}"
        if (status.progress.iteration or evaluation_text(status)) and self._shown != done:
            self._shown = done
            self._console.print(Text(f"{datetime.now():%H:%M:%S} {progress_line(status)}"), soft_wrap=True)

    def note(self, text: str, tail: Sequence[str] = ()) -> None:
        self._console.print(Text(text, style="yellow"))
        for line in tail:
            self._console.print(Text(f"    {line}", style="dim"))

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> Group:
        status, width = self._status, self._console.width
        phase = (status.phase, PHASE_STYLES.get(status.phase, "cyan"))
        head = Text.assemble((self._job_name, "bold"), "  ", phase, "  ", status.reason)
        head.truncate(width, overflow="ellipsis")
        rows = [self._row(component, width) for component in status.components]
        return Group(head, Text(progress_line(status) or "no iteration yet"), *rows)

    def _row(self, component: ComponentStatus, width: int) -> Text:
        """Name, state, and what the component said last: on one line where there is room, else on the next one."""
        said = last_event(tail(self._folder.log(component.name), EVENT_LINES))
        one_line = width >= ONE_LINE_WIDTH
        room = STATE_WIDTH if one_line and said else width - NAME_WIDTH
        state = Text(component_text(component), style="green" if component.ready else "yellow")
        state.truncate(room, overflow="ellipsis", pad=one_line)
        row = Text.assemble(f"{component.name:{NAME_WIDTH}}", state)
        if said:
            row.append(" " if one_line else "\n  ")
            event = Text(said, style="dim")
            event.truncate(width - NAME_WIDTH - STATE_WIDTH - 1 if one_line else width - 2, overflow="ellipsis")
            row.append_text(event)
        return row


_ACCESS = re.compile(r'"(GET|POST|PUT|HEAD|DELETE) \S+ HTTP/|\bGET /(health|status|metrics)\b|HTTP Request: ')
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BEFORE_EVENT = re.compile(
    r"(\([^()]*\bpid=\d+\)|\d{4}-\d\d-\d\d[ T][\d:.,]+Z?|\d\d-\d\d [\d:]+|INFO:?|\[[\w./]+:\d+\]|\s)+"
)


def last_event(lines: Sequence[str]) -> str:
    """The last line that tells of something, without its time and level: access logs only tell that somebody asked."""
    event = _COLOURS.sub("", next((line for line in reversed(lines) if line.strip() and not _ACCESS.search(line)), ""))
    begins = _BEFORE_EVENT.match(event)
    return event[begins.end() if begins else 0 :].strip()


def component_text(component: ComponentStatus) -> str:
    """ "ready, 2 restarts"."""
    state = "ready" if component.ready else component.message
    restarts = f", {component.restarts} restart{'s' if component.restarts > 1 else ''}" if component.restarts else ""
    return state + restarts


def error(text: str) -> None:
    """A problem a line on standard error; what is indented belongs to the line before."""
    for line in text.splitlines():
        print(line if line.startswith(" ") else f"visionrl: {line}", file=sys.stderr, flush=True)


def refuse(problem: Exception) -> None:
    """Why something cannot be used, on standard error: what is wrong with a file begins with its name."""
    if isinstance(problem, JobFileError):
        print(problem, file=sys.stderr, flush=True)
    elif isinstance(problem, OSError) and problem.filename:
        print(f"{problem.filename}: {problem.strerror}", file=sys.stderr, flush=True)
    else:
        error(str(problem))
