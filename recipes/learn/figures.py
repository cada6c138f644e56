"""The evidence as pictures. Colours differ in lightness as well as in hue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.learn.evidence import CONTROLS, Evidence, Player
from visionrl.status import Score
from visionrl_trainer.report.charts import played_after
from visionrl_trainer.report.curves import EVALUATION, TRAINING, save_png, style

PLAIN, TEACHER = "#9aa3ad", "#3b4249"
COLOURS = {"sft": TRAINING, "rl": EVALUATION, "scripted": TEACHER}
"""Of the players; those that see nothing are plain."""
SCORE = "unique achievements"
WIDTH = 8.0
"""Inches: at 150 dots an inch a page's width."""


def write_all(evidence: Evidence, folder: Path) -> list[Path]:
    """Draw what there is to draw; returns the files."""
    figures: dict[str, Figure] = {}
    if evidence.players:
        figures["players"] = players(evidence)
    if len(evidence.seeds) > 1:
        controls = {name: (each.label, each.score) for name, each in evidence.players.items()}
        pairs = {seed: (before.score, after.score) for seed, (before, after) in evidence.seeds.items()}
        figures["trainings"] = trainings(controls, pairs)
    if evidence.metrics:
        figures["training"] = reward_curve(evidence.metrics, evidence.evaluations, "Reinforcement learning")
    if {"sft", "rl"} <= evidence.players.keys():
        figures["achievements"] = achievements(evidence.players["sft"], evidence.players["rl"])
    if {"base", "reference"} <= evidence.ablations.keys():
        figures["ablations"] = ablations(evidence)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        save_png(figure, files[name])
    return list(files.values())


def reward_curve(metrics: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], title: str) -> Figure:
    """Mean return of the training episodes, ± 95 % of its mean, and the evaluations on held-out seeds with their
    intervals, by the iterations that the policy had learned."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if metrics:
        iterations = [played_after(record) for record in metrics]
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
    style(axes, title, "return of an episode", "iterations that the policy had learned")
    if metrics or evaluations:
        axes.legend(loc="best", frameon=False)
    return figure


def players(evidence: Evidence) -> Figure:
    """The main run and its controls."""
    rows = [(each.label, each.score, COLOURS.get(name, PLAIN)) for name, each in evidence.players.items()]
    return bars(rows, SCORE, CONTROLS["blind"])


def trainings(controls: Mapping[str, tuple[str, Score]], found: Mapping[int, tuple[Score, Score]]) -> Figure:
    """Every training before and after reinforcement learning, between the controls (labels and scores by the players'
    names). ``found``: both scores by training seed."""
    before = [(f"SFT, training {seed}", pair[0], TRAINING) for seed, pair in found.items()]
    after = [(f"SFT + RL, training {seed}", pair[1], EVALUATION) for seed, pair in found.items()]
    below, above = (
        [(*controls[name], COLOURS.get(name, PLAIN)) for name in names if name in controls]
        for names in (("random", "blind"), ("scripted",))
    )
    return bars([*below, *before, *after, *above], SCORE, CONTROLS["blind"])


def bars(rows: Sequence[tuple[str, Score, str]], score_name: str, line: str, digits: int = 2) -> Figure:
    """A bar a policy with its interval, and a line through all of them at the one that is called ``line``. Rows: label,
    score, colour."""
    most = max(score.high for _, score, _ in rows)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.5 * len(rows)), layout="constrained")
    for row, (label, score, colour) in enumerate(rows):
        axes.barh(row, score.mean, color=colour, height=0.65)
        axes.errorbar(score.mean, row, xerr=_error(score), color="black", capsize=4, linewidth=1.2)
        axes.text(score.high + 0.015 * most, row, f"{score.mean:.{digits}f}", va="center")
        if label == line:
            axes.axvline(score.mean, color="black", linestyle=":", linewidth=1.2, zorder=2)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"{score_name}, {rows[0][1].episodes} held-out seeds (mean, 95 % bootstrap)", xlim=(0, 1.1 * most))
    _style(axes)
    return figure


def achievements(before: Player, after: Player) -> Figure:
    """Share of episodes that unlock each achievement, before and after reinforcement learning."""
    names = sorted(before.rates.keys() | after.rates.keys(), key=lambda name: -after.rates.get(name, 0))
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.28 * len(names)), layout="constrained")
    rows = range(len(names))
    first = [100 * before.rates.get(name, 0) for name in names]
    last = [100 * after.rates.get(name, 0) for name in names]
    axes.hlines(rows, first, last, color=PLAIN, linewidth=2, zorder=1)
    axes.scatter(first, rows, color=TRAINING, marker="o", label=before.label, zorder=2)
    axes.scatter(last, rows, color=EVALUATION, marker="s", label=after.label, zorder=2)
    axes.set_yticks(rows, [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set(xlabel=f"episodes of {len(after.returns)} that unlock it, %", xlim=(-2, 102))
    axes.legend(loc="lower right", frameon=False)
    _style(axes)
    return figure


def ablations(evidence: Evidence) -> Figure:
    """Paired gain of each variant over the supervised model; the reference's interval as a band behind them."""
    base, reference = evidence.ablations["base"], evidence.ablations["reference"].gain_over(evidence.ablations["base"])
    shown = {name: each for name, each in evidence.ablations.items() if name != "base"}
    figure, axes = plt.subplots(figsize=(WIDTH, 1.0 + 0.5 * len(shown)), layout="constrained")
    axes.axvspan(reference.low, reference.high, color=PLAIN, alpha=0.25, linewidth=0)
    axes.axvline(0, color="black", linewidth=1)
    for row, (name, each) in enumerate(shown.items()):
        gain = each.gain_over(base)
        colour, marker = (EVALUATION, "s") if name == "reference" else (TRAINING, "o")
        axes.errorbar(gain.mean, row, xerr=_error(gain), color=colour, marker=marker, capsize=4)
        axes.annotate(f"{gain.mean:+.2f}", (gain.mean, row), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(shown)), [each.label for each in shown.values()])
    axes.set_ylim(len(shown) - 0.5, -0.6)
    axes.set(xlabel=f"gain over SFT, {len(base.returns)} held-out seeds (paired, 95 % bootstrap)")
    _style(axes)
    return figure


def _error(score: Score) -> list[list[float]]:
    return [[score.mean - score.low], [score.high - score.mean]]


def _style(axes: Axes) -> None:
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
