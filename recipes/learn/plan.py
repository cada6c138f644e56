"""The steps of the evidence, in order: which command each one is."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recipes.learn.ablations import ITERATIONS, SEEDS, VARIANTS, Variant, all_changes, give_base
from recipes.learn.jobs import write_derived

LEARN_JOB = Path("configs/crafter-learn.yaml")
MAIN = "crafter-learn"
"""The job's name in that file."""

TRAINING_SEEDS = (1, 2)
"""Of the main run's repetitions: other initial weights, batches and start states; the teacher's worlds stay."""

Group = Literal["controls", "main", "blinded", "ablations", "seeds"]


@dataclass(frozen=True)
class Places:
    """The folder of everything."""

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
    run = str(places.main_run)
    return [
        _policy(places, "random", "1 to 4 random actions a turn"),
        _policy(places, "blind", "the best action distribution that never looks"),
        _policy(places, "scripted", "the teacher"),
        _train(places, "main", "main", "warm start, then reinforcement learning", LEARN_JOB, MAIN),
        *(_repetition(places, seed) for seed in TRAINING_SEEDS),
        _blinded(places, "grey"),
        _blinded(places, "shuffled"),
        _ablated(places, "base", "the supervised model on the ablations' seeds", lambda: ["--run", run, "--base"]),
        _ablated(
            places,
            "reference",
            f"the main run after {ITERATIONS} iterations",
            lambda: ["--run", run, "--version", version_after(places.main_run, ITERATIONS)],
        ),
        *(step for variant in VARIANTS for step in _ablation(places, variant)),
    ]


def _policy(places: Places, name: str, about: str) -> Step:
    return _evaluate(places, name, "controls", about, lambda: ["--policy", f"crafter-{name}"])


def _blinded(places: Places, control: str) -> Step:
    def who() -> list[str]:
        return ["--run", str(places.main_run), "--control", control]

    about = f"the final policy with {control} images, against blind"
    return _evaluate(places, control, "blinded", about, who, against="blind")


def _ablation(places: Places, variant: Variant) -> tuple[Step, Step]:
    """Train, then evaluate."""
    job_file, run = places.root / "jobs" / f"{variant.job}.yaml", places.runs / variant.job
    train = _train(places, f"train-{variant.name}", "ablations", f"train: {variant.label}", job_file, variant.job)
    judge = _ablated(places, variant.name, f"evaluate: {variant.label}", lambda: ["--run", str(run)])

    def prepare() -> None:
        write_derived(LEARN_JOB, variant.job, all_changes(variant), job_file)
        give_base(places.main_run, run)

    return replace(train, prepare=prepare), judge


def _repetition(places: Places, seed: int) -> Step:
    """The main run once more with another training seed; judged on the same held-out seeds."""
    name = f"learn-seed-{seed}"
    job_file = places.root / "jobs" / f"{name}.yaml"
    changes = {"training.seed": seed, "model.tiny": {"seed": seed}}
    train = _train(places, f"seed-{seed}", "seeds", f"the main run with training seed {seed}", job_file, name)
    return replace(train, prepare=functools.partial(write_derived, LEARN_JOB, name, changes, job_file))


def _ablated(places: Places, name: str, about: str, who: Callable[[], list[str]]) -> Step:
    """On the ablations' seeds, against the supervised model."""
    against = None if name == "base" else "ablation-base"
    return _evaluate(places, f"ablation-{name}", "ablations", about, lambda: [*who(), "--seeds", SEEDS], against)


def version_after(run: Path, iterations: int) -> str:
    """Name of the policy that had been trained for so many iterations: the one that played the next one."""
    for record in _lines(run / "metrics.jsonl"):
        if record["iteration"] == iterations + 1:
            return str(record["version"])
    raise LookupError(f"{run} has not played iteration {iterations + 1} yet")


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
