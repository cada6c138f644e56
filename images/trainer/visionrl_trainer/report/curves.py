"""A run's curves as pictures."""

from __future__ import annotations

import io
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
HEALTH = {
    "entropy": "entropy, nats per token",
    "clip_fraction": "share of clipped ratios",
    "grad_norm": "gradient norm",
    "invalid_rate": "share of invalid answers",
    "mismatch_max": "largest serving-training logprob difference",
    "seconds": "seconds per iteration",
}
"""Metrics that show the health of training, and their titles."""

Record = dict[str, Any]


def reward_curve(metrics: Sequence[Record], evaluations: Sequence[Record], job: str) -> Figure:
    """Mean return of the training episodes by iteration, ± 95 % of its mean, and the evaluations on held-out seeds
    with their intervals."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if metrics:
        iterations = [record["iteration"] for record in metrics]
        means = [record["reward"] for record in metrics]
        errors = [1.96 * record["reward_std"] / record["episodes"] ** 0.5 for record in metrics]
        axes.plot(iterations, means, color=TRAINING, marker="o", markersize=3, label="training episodes (mean, ± 95 %)")
        lower = [mean - error for mean, error in zip(means, errors, strict=True)]
        upper = [mean + error for mean, error in zip(means, errors, strict=True)]
        axes.fill_between(iterations, lower, upper, color=TRAINING, alpha=0.15)
    for index, result in enumerate(evaluations):
        axes.errorbar(
            result["iteration"],
            result["mean"],
            yerr=[[result["mean"] - result["low"]], [result["high"] - result["mean"]]],
            color=EVALUATION,
            marker="s",
            capsize=4,
            label=f"{result['episodes']} held-out seeds (mean, 95 % bootstrap)" if index == 0 else None,
        )
    _style(axes, job, "return of an episode")
    if metrics or evaluations:
        axes.legend(loc="best", frameon=False)
    return figure


def health_curves(metrics: Sequence[Record]) -> Figure:
    """Small multiples of :data:`HEALTH` by iteration."""
    figure, grid = plt.subplots(2, 3, figsize=(11, 5), layout="constrained")
    iterations = [record["iteration"] for record in metrics]
    for axes, (name, title) in zip(grid.flat, HEALTH.items(), strict=True):
        axes.plot(iterations, [record[name] for record in metrics], color=TRAINING, marker="o", markersize=2)
        _style(axes, title, "")
        if name == "mismatch_max":
            axes.set_yscale("log")
    return figure


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
    _style(axes, title, "nats per decision", "optimizer step")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture in one step."""
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=150, format="png")
    plt.close(figure)
    draft.rename(path)


def as_svg(figure: Figure) -> str:
    """The picture for a page, without the XML prologue."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _style(axes: Axes, title: str, label: str, over: str = "iteration") -> None:
    axes.set(title=title, xlabel=over, ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
