"""Shows the result of a run in one table, from the summary that the trainer wrote."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from visionrl.status import Score
from visionrl_local.folder import LocalFolder
from visionrl_local.text import score_text


def read_summary(folder: LocalFolder) -> dict[str, Any] | None:
    """The trainer's summary; None where there is none."""
    try:
        summary = json.loads(folder.summary_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def show_summary(summary: dict[str, Any], folder: LocalFolder) -> None:
    """Print the table and the paths of the report and the run folder."""
    console = Console(highlight=False)
    table = Table(title=f"{summary.get('job', folder.root.name)}", show_header=False, title_justify="left")
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    console.print(table)
    if gain := (summary.get("evaluation") or {}).get("gain"):
        console.print(verdict(_score(gain)), soft_wrap=True)
    report = folder.root / "report.html"
    if report.exists():
        console.print(f"report:     {report}", soft_wrap=True)
    console.print(f"run folder: {folder.root}", soft_wrap=True)


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table: those whose value the summary has."""
    rows = [
        (label, _number(summary[key]))
        for key, label in (
            ("iterations", "iterations"),
            ("episodes", "training episodes"),
            ("turns", "turns"),
            ("episodes_per_minute", "episodes per minute"),
            ("adapter", "adapter"),
        )
        if summary.get(key) is not None
    ]
    if rewards := summary.get("reward"):
        rows.append(("reward, first and last iteration", f"{rewards[0]:.2f} → {rewards[-1]:.2f}"))
    evaluation = summary.get("evaluation") or {}
    for key, label in (("before", "evaluation before"), ("after", "evaluation after"), ("gain", "gain, paired")):
        if found := evaluation.get(key):
            score = _score(found)
            rows.append((label, f"{score_text(score)} on {score.episodes} seeds"))
    return rows


def verdict(gain: Score) -> str:
    """What the paired gain on the held-out seeds shows, in one sentence."""
    interval = f"the interval of the gain, {gain.low:+.2f} to {gain.high:+.2f},"
    if gain.low > 0:
        return f"better on the held-out seeds: {interval} is above 0"
    if gain.high < 0:
        return f"worse on the held-out seeds: {interval} is below 0"
    return f"neither better nor worse for certain: {interval} holds 0; more spec.evaluation.episodes narrow it"


def _score(found: dict[str, Any]) -> Score:
    return Score(**{field: found[field] for field in Score.model_fields})


def _number(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
