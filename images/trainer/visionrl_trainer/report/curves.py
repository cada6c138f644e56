"""Curves as pictures, for what is no run: supervised training, and figures of the learning evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAINING, EVALUATION = "#2f6db3", "#c8553d"

Record = dict[str, Any]


def loss_curve(records: Sequence[Record], title: str) -> Figure:
    """Loss of a supervised training by step, and the validation losses."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    steps = [record["step"] for record in records]
    axes.plot(steps, [record["loss"] for record in records], color=TRAINING, label="training")
    measured = [record for record in records if record["validation_loss"] is not None]
    if measured:
        losses = [record["validation_loss"] for record in measured]
        axes.plot([record["step"] for record in measured], losses, color=EVALUATION, marker="s", label="held out")
        axes.legend(loc="best", frameon=False)
    style(axes, title, "nats per decision", "optimizer step")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture in one step."""
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=150, format="png")
    plt.close(figure)
    draft.rename(path)


def style(axes: Axes, title: str, label: str, over: str) -> None:
    """Title, labels, whole numbers below, a light grid."""
    axes.set(title=title, xlabel=over, ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
