"""The reward over the iterations as a chart of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from visionrl.status import JobStatus
from visionrl_local.text import progress_line
from visionrl_local.view import PHASE_STYLES

BLOCKS = " ▁▂▃▄▅▆▇█"
HEIGHT = 8


def bars(values: Sequence[float], width: int, height: int = HEIGHT) -> Iterator[str]:
    """Lines of a bar chart, from the top: the last values that fit, with the largest and the smallest as marks."""
    shown = values[-max(1, width - 9) :]
    low, high = min(0.0, *shown), max(shown)
    span = (high - low) or 1.0
    eighths = [round((value - low) / span * height * 8) for value in shown]
    for row in reversed(range(height)):
        mark = f"{high:8.2f}" if row == height - 1 else f"{low:8.2f}" if row == 0 else " " * 8
        yield f"{mark} {''.join(BLOCKS[min(8, max(0, each - 8 * row))] for each in eighths)}".rstrip()


class ChartView:
    """A chart that stays in place; notes scroll above it. What was shown last stays on the screen."""

    def __init__(self, name: str, console: Console) -> None:
        self._name, self._console = name, console
        self._rewards: dict[int, float] = {}
        self._status = JobStatus()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2)
        self._live.start()

    def status(self, status: JobStatus) -> None:
        self._status = status
        if status.progress.iteration and status.progress.reward is not None:
            self._rewards[status.progress.iteration] = status.progress.reward

    def note(self, text: str, tail: Sequence[str] = ()) -> None:
        self._console.print(text, *(f"    {line}" for line in tail), sep="\n", markup=False)

    def close(self) -> None:
        self._live.refresh()
        self._live.stop()

    def _render(self) -> Group:
        status = self._status
        head = Text.assemble(
            (self._name, "bold"), "  ", (status.phase, PHASE_STYLES.get(status.phase, "cyan")), f"  {status.reason}"
        )
        head.no_wrap, head.overflow = True, "ellipsis"
        rows = list(bars(list(self._rewards.values()), self._console.width)) if self._rewards else ["no iteration yet"]
        return Group(head, Text(progress_line(status)), *(Text(row, no_wrap=True) for row in rows))
