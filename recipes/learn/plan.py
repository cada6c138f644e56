"""The steps of the evidence, in order: which command each one is."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.learn.ablations import ITERATIONS, SEEDS, VARIANTS, prepare

LEARN_JOB = Path("configs/crafter-learn.yaml")
MAIN = "crafter-learn"
"""The job's name in that file."""

Group = Literal["controls", "main", "blinded", "ablations"]


@dataclass(frozen=True)
class Places:
    """Where everything lies."""

    runs: Path = Path("runs")

    @property
    def root(self) -> Path:
        return self.runs / "learn"

    @property
    def main_run(self) -> Path:
        return self.runs / MAIN

    def record(self, step: str) -> Path:
        return self.root / f"{step}.json"

    def evaluation(self, step: str) -> Path:
        """What ``visionrl eval --out`` writes."""
        return self.root / "evaluations" / f"{step}.json"


@dataclass(frozen=True)
class Step:
    """One public command and how its result is read."""

    name: str
    group: Group
    about: str
    command: Callable[[], list[str]]
    """Words of the command; asked for when the step begins, for some name what an earlier step made."""
    result: Callable[[], dict[str, Any]]
    prepare: Callable[[], None] = lambda: None


def all_steps(places: Places) -> list[Step]:
    """Controls first: they take minutes and need no training."""
    evaluate = functools.partial(_evaluate, places)
    main = str(places.main_run)
    steps = [
        _policy(places, "random", "1 to 4 random actions a turn"),
        _policy(places, "blind", "the best action distribution that never looks"),
        _policy(places, "scripted", "the teacher"),
        _train(places, "main", "main", "warm start, then reinforcement learning", LEARN_JOB, MAIN),
        *(
            evaluate(
                control,
                "blinded",
                f"the final policy with {control} images, against blind",
                lambda control=control: ["--run", main, "--control", control],
                against="blind",
            )
            for control in ("grey", "shuffled")
        ),
        evaluate(
            "ablation-base",
            "ablations",
            "the supervised model on the ablations' seeds",
            lambda: ["--run", main, "--base", "--seeds", SEEDS],
        ),
        evaluate(
            "ablation-reference",
            "ablations",
            f"the main run after {ITERATIONS} iterations",
            lambda: ["--run", main, "--version", version_after(places.main_run, ITERATIONS), "--seeds", SEEDS],
            against="ablation-base",
        ),
    ]
    for variant in VARIANTS:
        job_file, run = places.root / "jobs" / f"{variant.job}.yaml", places.runs / variant.job
        train = _train(places, f"train-{variant.name}", "ablations", f"train: {variant.label}", job_file, variant.job)
        made = functools.partial(prepare, LEARN_JOB, variant, job_file, places.main_run, run)
        steps.append(Step(train.name, train.group, train.about, train.command, train.result, made))
        steps.append(
            evaluate(
                f"ablation-{variant.name}",
                "ablations",
                f"evaluate: {variant.label}",
                lambda run=run: ["--run", str(run), "--seeds", SEEDS],
                against="ablation-base",
            )
        )
    return steps


def version_after(run: Path, iterations: int) -> str:
    """Name of the policy that had been trained for so many iterations: the one that played the next one."""
    for record in _lines(run / "metrics.jsonl"):
        if record["iteration"] == iterations + 1:
            return str(record["version"])
    raise LookupError(f"{run} has not played iteration {iterations + 1} yet")


def _policy(places: Places, name: str, about: str) -> Step:
    return _evaluate(places, name, "controls", about, lambda: ["--policy", f"crafter-{name}"])


def _evaluate(
    places: Places, name: str, group: Group, about: str, who: Callable[[], list[str]], against: str | None = None
) -> Step:
    out = places.evaluation(name)
    compared = ["--against", str(places.evaluation(against))] if against else []

    def command() -> list[str]:
        return [visionrl(), "eval", *who(), "--config", str(LEARN_JOB), "--out", str(out), *compared]

    return Step(name, group, about, command, lambda: dict(json.loads(out.read_text(encoding="utf-8"))))


def _train(places: Places, name: str, group: Group, about: str, file: Path, job: str) -> Step:
    run = places.runs / job

    def result() -> dict[str, Any]:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return {"summary": summary, "metrics": _lines(run / "metrics.jsonl")}

    return Step(name, group, about, lambda: [visionrl(), "run", str(file), "--runs", str(places.runs)], result)


def visionrl() -> str:
    """The command of the environment that this runs in."""
    return str(Path(sys.executable).with_name("visionrl"))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
