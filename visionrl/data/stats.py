"""How many traces were kept, and why others were dropped."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import Field

from visionrl.data.config import Section


class Tally(Section):
    """How many were read, kept and dropped."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """By reason, most frequent first."""


class Side(Section):
    """Training or validation."""

    lines: int
    episodes: int
    seeds: int
    """Different environment seeds."""
    mean_achievements: float | None
    """Of its episodes."""


class Stats(Section):
    """The content of stats.json. The same traces and settings give the same file."""

    inputs: list[str]
    episodes: Tally
    decisions: Tally
    """Of the episodes that were kept."""
    train: Side
    val: Side
    images: int
    """Different frames."""
    lines_by_policy: dict[str, int]
    estimated_lengths: int = 0
    """Lines whose length in tokens no server counted; max_sequence_length was applied to an estimate."""
    warnings: list[str] = Field(default_factory=list)


def tally(read: int, dropped: Counter[str]) -> Tally:
    ranked = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return Tally(read=read, kept=read - dropped.total(), dropped=dict(ranked))


def table_rows(stats: Stats) -> list[tuple[str, str]]:
    """Names and values for people."""
    rows: list[tuple[str, str]] = []
    for name, counted in (("episodes", stats.episodes), ("decisions", stats.decisions)):
        rows.append((f"{name} read", f"{counted.read:,}"))
        rows += [(f"  dropped: {reason}", f"{count:,}") for reason, count in counted.dropped.items()]
        rows.append((f"{name} kept", f"{counted.kept:,}"))
    for name, side in (("training", stats.train), ("validation", stats.val)):
        mean = "" if side.mean_achievements is None else f", {side.mean_achievements:.2f} achievements each"
        rows.append((name, f"{side.lines:,} lines of {side.episodes:,} episodes on {side.seeds:,} seeds{mean}"))
    rows.append(("images", f"{stats.images:,}"))
    return rows


def as_json(stats: Stats) -> dict[str, Any]:
    return stats.model_dump(mode="json")
