"""Two evaluations, paired by seed: what the second one gains over the first, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from visionrl.rollout import Wire
from visionrl.seeds import seeds_text
from visionrl.status import Score
from visionrl_cli.evaluation.results import Results, no_results, read_results, settings_that_differ
from visionrl_cli.evaluation.text import EvalError, signed, verdict
from visionrl_trainer.rollout.evaluate import EpisodeScore, paired_gain

MEASURES: dict[str, Callable[[EpisodeScore], float]] = {
    "return": lambda episode: episode.score,
    "environment return": lambda episode: episode.env_return,
    "environment steps": lambda episode: episode.steps,
    "invalid answers, share of turns": lambda episode: episode.invalid / max(1, episode.turns),
}
"""What is compared of an episode, by its name in the table; beside them the environment's own scores. The return of
Crafter is its unique achievements."""


class Side(Wire):
    """One of the two evaluations."""

    file: str
    policy: str
    seeds: int
    """Seeds that it was played on."""


class Difference(Wire):
    """A measure on the seeds that both were played on."""

    a: float
    """Mean of the first evaluation."""
    b: float
    """Mean of the second one."""
    gain: Score
    """Of the second one over the first, paired by seed."""


class Pairing(Wire):
    """What ``visionrl compare`` prints."""

    a: Side
    b: Side
    seeds: list[int]
    """Those that both were played on."""
    differences: dict[str, Difference]
    """By measure."""
    rates: dict[str, tuple[float, float]]
    """Share of the episodes in which each event happened, of both."""
    settings: dict[str, tuple[Any, Any]]
    """Those that differ, of both, by dotted name."""


def compare(a: Path, b: Path) -> Pairing:
    """Read two files of results. Raises :class:`EvalError`, :class:`JobFileError`, ``OSError``."""
    results = read_results(a), read_results(b)
    first, second = (_by_seed(file, each) for file, each in zip((a, b), results, strict=True))
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise EvalError(
            f"{a} was played on the seeds {seeds_text(tuple(first))}, {b} on {seeds_text(tuple(second))}: "
            "a comparison needs two seeds of both"
        )
    return Pairing(
        a=Side(file=str(a), policy=results[0].policy, seeds=len(first)),
        b=Side(file=str(b), policy=results[1].policy, seeds=len(second)),
        seeds=seeds,
        differences={
            name: _difference([measure(first[seed]) for seed in seeds], [measure(second[seed]) for seed in seeds])
            for name, measure in {**MEASURES, **_own_scores([*first.values(), *second.values()])}.items()
        },
        rates=_rates([first[seed] for seed in seeds], [second[seed] for seed in seeds]),
        settings=settings_that_differ(*(each.settings for each in results)),
    )


def _by_seed(file: Path, results: Results) -> dict[int, EpisodeScore]:
    if [episode.seed for episode in results.episodes] != results.seeds:
        raise no_results(file, "it does not have one episode for each seed")
    return {episode.seed: episode for episode in results.episodes}


def _own_scores(episodes: list[EpisodeScore]) -> dict[str, Callable[[EpisodeScore], float]]:
    """Measures of the environment's other scores, which all episodes have."""
    names = set.intersection(*(set(episode.scores) for episode in episodes))
    return {name: partial(_own_score, name) for name in sorted(names)}


def _own_score(name: str, episode: EpisodeScore) -> float:
    return episode.scores[name]


def _difference(a: list[float], b: list[float]) -> Difference:
    return Difference(a=sum(a) / len(a), b=sum(b) / len(b), gain=paired_gain(a, b))


def _rates(a: list[EpisodeScore], b: list[EpisodeScore]) -> dict[str, tuple[float, float]]:
    def share(episodes: list[EpisodeScore], name: str) -> float:
        return sum(name in episode.unlocked for episode in episodes) / len(episodes)

    names = {name for episode in (*a, *b) for name in episode.unlocked}
    rates = {name: (share(a, name), share(b, name)) for name in names}
    return dict(sorted(rates.items(), key=lambda item: (-max(item[1]), item[0])))


def show(pairing: Pairing) -> None:
    """The tables on standard output."""
    console = Console(highlight=False)
    for letter, side in (("A", pairing.a), ("B", pairing.b)):
        console.print(f"{letter}: {side.policy} ({side.file}), {side.seeds} seeds", soft_wrap=True, markup=False)
    table = Table(f"on {len(pairing.seeds)} seeds of both", "A", "B", "B − A, mean [95 % CI]", "")
    for name, found in pairing.differences.items():
        table.add_row(name, f"{found.a:.2f}", f"{found.b:.2f}", signed(found.gain), _direction(found.gain))
    console.print(table)
    if pairing.rates:
        rates = Table("event", "A", "B", "B − A")
        for name, (a, b) in pairing.rates.items():
            rates.add_row(name, f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{100 * (b - a):+.1f}")
        console.print(rates)
    gain = pairing.differences["return"].gain
    console.print(f"return: B is {verdict(gain)}", soft_wrap=True, markup=False)
    for name, (a, b) in pairing.settings.items():
        console.print(f"settings that differ: {name}: {a} in A, {b} in B", soft_wrap=True, markup=False)


def _direction(gain: Score) -> str:
    """Which way the interval points, where it does not hold zero."""
    return "more" if gain.low > 0 else "less" if gain.high < 0 else ""
