"""What the steps' records say together: players on the same seeds, the training, the ablations, the costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.learn.ablations import VARIANTS
from recipes.learn.plan import TRAINING_SEEDS
from recipes.learn.runner import Record
from visionrl.status import Score
from visionrl_trainer.rollout.evaluate import interval, paired_gain


@dataclass(frozen=True)
class Player:
    """One policy's evaluation."""

    label: str
    returns: dict[int, float]
    """Unique achievements by seed."""
    rates: dict[str, float]
    """Share of the episodes that unlocked each achievement."""
    crafter_score: float
    """Percent."""
    invalid_rate: float

    @property
    def score(self) -> Score:
        return interval(list(self.returns.values()))

    def gain_over(self, other: Player) -> Score:
        """Paired by seed. Raises ``KeyError`` where the other one did not play a seed."""
        seeds = list(self.returns)
        return paired_gain([other.returns[seed] for seed in seeds], [self.returns[seed] for seed in seeds])


@dataclass(frozen=True)
class Cost:
    """What a step took, all its attempts together."""

    step: str
    seconds: float
    cpu_seconds: float
    attempts: int


@dataclass(frozen=True)
class Evidence:
    """Everything that has been measured so far; what has not is absent."""

    players: dict[str, Player]
    """On the main run's seeds, in the order of the story."""
    metrics: list[dict[str, Any]]
    """A line an iteration of the main run."""
    evaluations: list[dict[str, Any]]
    """Of the main run: before and after reinforcement learning."""
    seeds: dict[int, tuple[Player, Player]]
    """By training seed: before and after reinforcement learning, on the main run's seeds."""
    ablations: dict[str, Player]
    """On the ablations' seeds: ``base``, ``reference``, then the variants by name."""
    costs: list[Cost]


CONTROLS = {
    "random": "random actions",
    "blind": "best blind policy",
    "grey": "SFT + RL, grey images",
    "shuffled": "SFT + RL, shuffled images",
    "scripted": "scripted teacher",
}
TRAINED = {"sft": "supervised (SFT)", "rl": "SFT + RL"}
ORDER = ("random", "blind", "grey", "shuffled", "sft", "rl", "scripted")


def gather(records: Mapping[str, Record]) -> Evidence:
    """``records`` by step; those without a result add their cost only."""
    results = {step: record["result"] for step, record in records.items() if record["result"] is not None}
    players = {name: _player(label, results[name]) for name, label in CONTROLS.items() if name in results}
    evaluations = _evaluations(results, "main")
    trained = {name: _trained(name, found) for name, found in zip(("sft", "rl"), evaluations, strict=False)}
    players |= trained
    runs = {0: "main"} | {seed: f"seed-{seed}" for seed in TRAINING_SEEDS}
    found = {seed: _evaluations(results, step) for seed, step in runs.items()}
    labels = {"base": TRAINED["sft"], "reference": "reference: GRPO, turn-level, in step"}
    labels |= {variant.name: variant.label for variant in VARIANTS}
    return Evidence(
        players={name: players[name] for name in ORDER if name in players},
        metrics=results["main"]["metrics"] if "main" in results else [],
        evaluations=evaluations,
        seeds={seed: (_trained("sft", pair[0]), _trained("rl", pair[-1])) for seed, pair in found.items() if pair},
        ablations={
            name: _player(label, results[f"ablation-{name}"])
            for name, label in labels.items()
            if f"ablation-{name}" in results
        },
        costs=[_cost(record) for record in records.values()],
    )


def _player(label: str, result: Mapping[str, Any]) -> Player:
    """Of what ``visionrl eval`` wrote."""
    returns = dict(zip(result["seeds"], result["returns"], strict=True))
    return Player(label, returns, result["rates"], result["crafter_score"], result["invalid_rate"])


def _evaluations(results: Mapping[str, Any], step: str) -> list[dict[str, Any]]:
    """Of a run's summary: before and after, none where it has not ended."""
    return [results[step]["summary"]["evaluation"][which] for which in ("before", "after")] if step in results else []


def _trained(name: str, found: Mapping[str, Any]) -> Player:
    """Of an evaluation in a run's summary."""
    first = found.get("first_seed", 0)  # of older records, whose seeds are consecutive
    seeds = found.get("seeds", range(first, first + len(found["returns"])))
    returns = dict(zip(seeds, found["returns"], strict=True))
    return Player(TRAINED[name], returns, found["rates"], found["crafter_score"], found["invalid_rate"])


def _cost(record: Record) -> Cost:
    attempts = record["attempts"]
    seconds, cpu = (sum(each[name] for each in attempts) for name in ("seconds", "cpu_seconds"))
    return Cost(record["step"], seconds, cpu, len(attempts))
