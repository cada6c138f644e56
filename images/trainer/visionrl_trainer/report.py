"""The reward curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

TRAINING, EVALUATION = "#2f6db3", "#c8553d"


def reward_curve(
    metrics: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], job: str, path: Path
) -> None:
    """Mean return of the training episodes by iteration, ± 95 % of its mean, and the evaluations on held-out seeds
    with their intervals; written as PNG."""
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=job, xlabel="iteration", ylabel="unique achievements an episode")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if metrics or evaluations:
        axes.legend(loc="best", frameon=False)
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=150, format="png")
    plt.close(figure)
    draft.rename(path)
