"""The ablations: the learn job with one thing changed, from the base model that the main run warmed up."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

Document = dict[str, Any]

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
        "gspo",
        "GSPO",
        "one ratio an answer instead of one a token",
        # The published 3e-4 is for answers of thousands of tokens. Here one or two tokens of ten decide, and GRPO's
        # 0.2 on those is 0.02 to 0.04 in the geometric mean over the answer.
        {"algorithm.loss": "gspo", "algorithm.clipLow": 0.03, "algorithm.clipHigh": 0.04},
    ),
    Variant(
        "outcome",
        "outcome advantages",
        "whole episodes compared instead of returns-to-go at the same turn",
        # A discount has no meaning for whole episodes, and the job's checks refuse one.
        {"algorithm.advantage": "outcome", "algorithm.gamma": 1.0},
    ),
    Variant(
        "state-anchored",
        "state-anchored advantages",
        "whole episodes, and decisions from the same simulator state (GiGPO)",
        {"algorithm.advantage": "state_anchored"},
    ),
    Variant(
        "stale",
        "one version behind",
        "the next batch is played while this one is learned from",
        {"training.maxStaleness": 1},
    ),
)


def derive(learn: Document, variant: Variant) -> Document:
    """The variant's job: its name, its length, no evaluation of its own, and its one change."""
    job = copy.deepcopy(learn)
    job["metadata"]["name"] = variant.job
    shared = {"training.iterations": ITERATIONS, "evaluation.episodes": 0}
    for path, value in {**shared, **variant.changes}.items():
        *sections, field = path.split(".")
        place = job["spec"]
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return job


def prepare(learn_file: Path, variant: Variant, job_file: Path, main_run: Path, run: Path) -> None:
    """Write the job's file, and give its run folder the main run's warmed-up base.

    A run takes a base that lies in its folder for its own: the warm start is not repeated, and all variants begin
    with the same weights.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    job_file.parent.mkdir(parents=True, exist_ok=True)
    with job_file.open("w", encoding="utf-8") as stream:
        stream.write(f"# {variant.label}: {learn_file.name} with one change. Written by python -m recipes.learn.\n")
        yaml.dump(derive(yaml.load(learn_file), variant), stream)
    if not (run / "base").exists():
        draft = run / ".base"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(main_run / "base", draft)
        draft.rename(run / "base")
