"""The file of results: written when all episodes are played, with a journal beside it until then; compared by seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from visionrl.crafter import own_score, progress
from visionrl.documents import DocumentError, parse_json, read_text
from visionrl.durable import write_atomically
from visionrl.job import DEFAULT_ENVIRONMENT
from visionrl.jobfile import JobFileError
from visionrl.problems import Problem, problems
from visionrl.rollout import Wire
from visionrl.seeds import seeds_text
from visionrl.status import Score
from visionrl_cli.evaluation.text import EvalError
from visionrl_trainer.rollout.evaluate import EpisodeScore, EvaluationResult, paired_gain

MAX_BYTES = 256 << 20
"""Of a file of results, or of its journal: 100,000 episodes of 1 KB are 100 MB."""


class Comparison(Wire):
    """Two policies on the same seeds."""

    file: str
    policy: str
    score: Score
    gain: Score
    """Of this evaluation over that one, paired by seed."""
    differs: dict[str, tuple[Any, Any]]
    """Settings that differ, there and here, by dotted name."""


class Results(Wire):
    """The file that ``--out`` writes and ``--against`` reads."""

    policy: str
    settings: dict[str, Any]
    score: Score
    """Return of an episode; in Crafter its unique achievements."""
    crafter_score: float | None = None
    """Percent; of Crafter alone."""
    progress: Score | None = None
    """Percent of the achievements, as BALROG counts it; of Crafter alone, and not in files of before."""
    scores: dict[str, float] = Field(default_factory=dict)
    """Means of the environment's other scores."""
    length: Score
    """Environment steps of an episode."""
    env_return: Score
    """The environment's own reward of an episode."""
    invalid_rate: float
    """Share of decisions without a valid tool call."""
    aborted: dict[str, int]
    """Episodes that were aborted, by reason; they count with what they had reached."""
    rates: dict[str, float]
    """Share of the episodes in which each event happened."""
    episodes_per_minute: float | None = None
    seeds: list[int]
    returns: list[float]
    episodes: list[EpisodeScore]
    comparison: Comparison | None = None

    @model_validator(mode="after")
    def _one_return_per_seed(self) -> Self:
        if not len(set(self.seeds)) == len(self.seeds) == len(self.returns):
            raise ValueError("it does not have one return for each seed")
        return self


def make_results(
    player: str, settings: dict[str, Any], episodes: tuple[EpisodeScore, ...], per_minute: float | None
) -> Results:
    found = EvaluationResult(player, episodes, env_name=settings.get("env_name", DEFAULT_ENVIRONMENT))
    reasons = [episode.aborted for episode in episodes if episode.aborted]
    return Results(
        policy=player,
        settings=settings,
        score=found.score,
        crafter_score=own_score(found.env_name, found.rates).get("crafter_score"),
        progress=progress(found.score) if found.env_name == DEFAULT_ENVIRONMENT else None,
        scores=found.scores,
        length=found.length,
        env_return=found.env_return,
        invalid_rate=found.invalid_rate,
        aborted={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        rates=found.rates,
        episodes_per_minute=per_minute,
        seeds=list(found.seeds),
        returns=list(found.returns),
        episodes=list(episodes),
    )


def read_results(file: Path) -> Results:
    """Raises :class:`JobFileError`, ``OSError``."""
    try:
        text = read_text(file, MAX_BYTES)
        parse_json(text)  # its limits; pydantic's own reader below takes NaN
        return Results.model_validate_json(text)
    except (DocumentError, ValidationError) as error:
        wrong = next(iter(problems(error, Results, by_alias=False))) if isinstance(error, ValidationError) else error
        raise no_results(file, str(wrong)) from None


def no_results(file: Path, why: str) -> JobFileError:
    return JobFileError(str(file), [Problem("", f"is not what visionrl eval --out writes: {why}")])


def check_same_seeds(file: Path, other: Results, seeds: tuple[int, ...]) -> None:
    """A paired comparison needs the same episodes. Raises :class:`EvalError`."""
    if set(other.seeds) != set(seeds):
        raise EvalError(
            f"{file} was played on the seeds {seeds_text(tuple(other.seeds))}, this evaluation is on "
            f"{seeds_text(seeds)}: only the same seeds can be compared"
        )


def compared(results: Results, file: Path, other: Results) -> Results:
    """The results with what they gain over other ones, paired by seed."""
    before = dict(zip(other.seeds, other.returns, strict=True))
    gain = paired_gain([before[seed] for seed in results.seeds], results.returns)
    differs = settings_that_differ(other.settings, results.settings)
    comparison = Comparison(file=str(file), policy=other.policy, score=other.score, gain=gain, differs=differs)
    return results.model_copy(update={"comparison": comparison})


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values of both, by dotted name."""
    there, here = dict(_flat(a)), dict(_flat(b))
    names = sorted(there.keys() | here.keys())
    return {name: (there.get(name), here.get(name)) for name in names if there.get(name) != here.get(name)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class Journal:
    """The completed episodes in ``FILE.partial``, one per line: an interrupted evaluation resumes from there.

    The run's name is kept as well, so that a remote task app can return episodes that it still has by their ids.
    Without a file nothing is kept.
    """

    def __init__(self, out: Path | None, settings: dict[str, Any], seeds: tuple[int, ...], run: str) -> None:
        self.run = run
        self.done: dict[int, EpisodeScore] = {}
        self._out = out
        # In the form in which it is read back: JSON has no tuples.
        self._head = json.loads(json.dumps({"settings": settings, "seeds": seeds_text(seeds)}))
        self.file = out.with_name(f"{out.name}.partial") if out else None
        if self.file and self.file.exists():
            self._resume(self.file)
        elif self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps({**self._head, "run": run}) + "\n")

    def add(self, score: EpisodeScore) -> None:
        self.done[score.seed] = score
        if self.file:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(score.model_dump_json() + "\n")

    def finish(self, results: Results) -> None:
        """Write the results in place of the journal."""
        if self._out and self.file:
            write_atomically(self._out, results.model_dump_json(indent=2) + "\n")
            self.file.unlink()

    def _resume(self, file: Path) -> None:
        try:
            head, *lines = read_text(file, MAX_BYTES).splitlines()
            data = parse_json(head)
            self.run = str(data.pop("run"))
        except (ValueError, KeyError, TypeError, AttributeError):
            problem = Problem("", "is not the journal of an evaluation; delete it or choose another --out")
            raise JobFileError(str(file), [problem]) from None
        if data != self._head:
            there, here = dict(_flat(data)), dict(_flat(self._head))
            name = next(name for name in here | there if there.get(name) != here.get(name))
            raise EvalError(
                f"{file} is from an evaluation with another {name.removeprefix('settings.')} ({there.get(name)}, here "
                f"{here.get(name)}); delete it or choose another --out"
            )
        whole = []
        for line in lines:
            try:
                score = EpisodeScore.model_validate_json(line)
            except ValidationError:
                break  # cut off by a crash: that episode is played again
            self.done[score.seed] = score
            whole.append(line)
        write_atomically(file, "".join(f"{line}\n" for line in (head, *whole)))
