"""The ablations: the learn job with one thing changed, from the base model that the main run warmed up."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITERATIONS = 8
"""Of every ablation; the reference is the main run after as many."""
SEEDS = "600000-600199"
"""Held out for the ablations alone: what is chosen by looking at them says nothing about the main run's seeds."""


@dataclass(frozen=True)
class Variant:
    """One row of the ablation table."""

    name: str
    label: str
    question: str
    """What it is compared for."""
    changes: Mapping[str, Any]
    """Fields of ``spec`` by dotted path. One choice; further fields only where it brings them along."""

    @property
    def job(self) -> str:
        return f"learn-{self.name}"


VARIANTS = (
    Variant(
        "outcome",
        "outcome advantages",
        "whole episodes compared instead of returns-to-go at the same turn",
        # A discount has no meaning for whole episodes, and the job's checks refuse one.
        {"algorithm.advantage": "outcome", "algorithm.gamma": 1.0},
    ),
    Variant(
        "gspo",
        "GSPO",
        "one ratio an answer instead of one a token",
        # The published 3e-4 is for answers of thousands of tokens. Here one or two tokens of ten decide, and GRPO's
        # 0.2 on those is 0.02 to 0.04 in the geometric mean over the answer.
        {"algorithm.loss": "gspo", "algorithm.clipLow": 0.03, "algorithm.clipHigh": 0.04},
    ),
    Variant(
        "stale",
        "one version behind",
        "the next batch is played while this one is learned from",
        {"training.maxStaleness": 1},
    ),
    Variant(
        "state-anchored",
        "state-anchored advantages",
        "whole episodes, and decisions from the same simulator state (GiGPO)",
        {"algorithm.advantage": "state_anchored"},
    ),
)


def all_changes(variant: Variant) -> dict[str, Any]:
    """Of the learn job: the length, no evaluation of its own, and the variant's one change."""
    return {"training.iterations": ITERATIONS, "evaluation.episodes": 0, **variant.changes}


def give_base(main_run: Path, run: Path) -> None:
    """Give a run folder the main run's warmed-up base, unless it has one.

    A run takes a base in its folder for its own: the warm start is not repeated, and all variants begin
    with the same weights.
    """
    if not (run / "base").exists():
        draft = run / ".base"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(main_run / "base", draft)
        draft.rename(run / "base")
