"""A run folder with all that a report shows, without a training: ``python -m tests.support.report_run FOLDER``."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.jobs import job
from visionrl.durable import write_atomically
from visionrl.status import Progress, TrainerReport
from visionrl_trainer.report import films
from visionrl_trainer.report.films import Film, FilmTurn, Pictures
from visionrl_trainer.report.histogram import Histogram
from visionrl_trainer.rollout.batch import Answer, EpisodeSamples, Group, Sample
from visionrl_trainer.rollout.sampler import Batch
from visionrl_trainer.state.runfolder import RunFolder

EVENTS = ("find key", "open door", "reach goal", "<b>bold</b>")
SIZE = 144


def frame(turn: int, shade: int) -> np.ndarray:
    """A square that wanders over a plain."""
    picture = np.full((SIZE, SIZE, 3), (40, 90 + shade, 60), np.uint8)
    x, y = 16 * (turn % 8), 16 * (turn // 8 % 8)
    picture[y : y + 16, x : x + 16] = (230, 180, 60)
    return picture


def film(iteration: int, turns: int, score: float) -> Film:
    """An evaluation's film."""
    pictures = Pictures()
    return Film(
        iteration=iteration,
        policy=f"demo-v{iteration:06d}-0123456789ab",
        seed=7,
        score=score,
        turns=[
            FilmTurn(
                image=pictures.of_frame(frame(turn, 10 * min(iteration, 8))),
                text=f'I see a square. <tool_call>{{"actions": ["east", "<script>{turn}</script>"]}}</tool_call>',
                actions=["east", "south"] if turn % 5 else [],
                events=[EVENTS[0]] if turn == 3 else [],
                reward=float(turn == 3),
                valid=turn % 5 != 0,
                error=None if turn % 5 else "no tool call in the answer",
            )
            for turn in range(turns)
        ],
    )


def played_batch(turns: int = 12, returns: tuple[float, ...] = (0.0, 2.0, 1.0)) -> tuple[Batch, list[Sample]]:
    """A batch of two groups, the second with these returns, and its samples with their advantages."""
    frames = {f"{turn:064d}": frame(turn, 30) for turn in range(turns)}
    groups = []
    for seed, scores in ((1_000_001, (1.0,) * len(returns)), (1_000_002, returns)):
        episodes = []
        for score in scores:
            samples = tuple(Sample((1, 2), (3,), (-0.5,), (digest,), "demo-v000002-0123456789ab") for digest in frames)
            answers = tuple(Answer(f"turn {n} of {score}", ("east",), (), True) for n in range(turns))
            rewards = (score, *[0.0] * (turns - 1))
            episodes.append(EpisodeSamples(seed, samples, rewards, ("s",) * turns, score, 0, answers=answers))
        groups.append(Group(seed, tuple(episodes)))
    means = [(group, np.mean([episode.score for episode in group.episodes])) for group in groups]
    with_advantages = [
        replace(sample, advantage=float(episode.score - mean))
        for group, mean in means
        for episode in group.episodes
        for sample in episode.samples
    ]
    return Batch("demo-v000002-0123456789ab", groups, frames), with_advantages


def record(iteration: int, rng: np.random.Generator) -> dict[str, Any]:
    """One line of ``metrics.jsonl``."""
    learned = 1 - math.exp(-iteration / 20)
    return {
        "iteration": iteration,
        "version": f"demo-v{iteration - 1:06d}-0123456789ab",
        "time": "2026-01-02T03:04:05.678+00:00",
        "seconds": 30.0,
        "phase_seconds": {
            "rollout": 18 + rng.normal(), "update": 9 + rng.normal() / 2, "sync": 1.0, "other": 0.1,
            **({"evaluation": 25.0} if iteration % 10 == 1 else {}),
        },
        "episodes": 16,
        "turns": 480,
        "tokens": 9600,
        "reward": 2 + 4 * learned + 0.3 * rng.normal(),
        "reward_std": 1.2,
        "events": {name: float(np.clip(learned * share + 0.03 * rng.normal(), 0, 1))
                   for name, share in zip(EVENTS, (0.9, 0.7, 0.3, 0.05), strict=True)},
        "advantages": Histogram.of(rng.normal(size=480).tolist()).model_dump(),
        "log_ratios": Histogram(low=-0.5, high=0.5, counts=[*[0] * 10, 4, 80, 900, 70, 6, *[0] * 10]).model_dump(),
        "entropy": 0.9 - 0.4 * learned,
        "clip_fraction": 0.04,
        "grad_norm": 0.6 + 0.1 * rng.normal(),
        "mismatch_kl": 4e-4 * math.exp(0.3 * rng.normal()),
        "mismatch_max": 0.02,
        "invalid_rate": 0.1 * (1 - learned),
        "rejected_rate": 0.0,
        "masked_rate": 0.0,
        "zero_variance_groups": 0,
        "staleness": int(iteration > 1),
    }  # fmt: skip


def make_run(root: Path, iterations: int = 42, turns: int = 12) -> RunFolder:
    """Write the folder of a run that has done this many iterations."""
    folder, rng = RunFolder(root), np.random.default_rng(0)
    write_atomically(folder.config_file, job({"training.iterations": 100}).model_dump_json(by_alias=True))
    write_atomically(folder.facts_file, json.dumps({"commit": "0123456789ab", "GPU": "none", "machine": "8 CPUs"}))
    folder.metrics.path.write_text("".join(json.dumps(record(n, rng)) + "\n" for n in range(1, iterations + 1)))
    for iteration in range(0, iterations + 1, 10):
        mean = 2 + 4 * (1 - math.exp(-iteration / 20))
        rates = {name: min(1.0, iteration / 40 * share) for name, share in zip(EVENTS, (1, 0.7, 0.3, 0), strict=True)}
        found = {"mean": mean, "low": mean - 0.5, "high": mean + 0.5, "episodes": 50, "rates": rates}
        folder.evaluations.append({"iteration": iteration, **found, "returns": [], "seeds": []})
        films.save(film(iteration, turns, mean), folder.films)
    folder.warm_start.metrics.path.parent.mkdir()
    for step in range(1, 21):
        loss = {"loss": 3 / step, "validation_loss": 3.2 / step if step % 5 == 0 else None}
        folder.warm_start.metrics.append({"step": step, "steps": 20, **loss})
    batch, samples = played_batch(turns)
    films.save_training(films.training_films(batch, samples, iterations - 1), folder.films)
    return folder


def report(phase: str = "Training", message: str = "", iteration: int = 42) -> TrainerReport:
    """What the trainer says of itself."""
    progress = Progress(iteration=iteration, total=100, eta="2026-01-02T05:00:00Z", episodes_per_minute=31.5)
    return TrainerReport.model_validate({"phase": phase, "message": message, "progress": progress})


if __name__ == "__main__":
    make_run(Path(sys.argv[1]))
