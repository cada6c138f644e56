"""``python -m recipes.minigrid``: the second game, from random weights to what it learned and what it needs to see.

Every policy plays the same 300 held-out seeds of configs/minigrid-tiny.yaml. *Blind* is the best fixed list of actions
that a search finds on training seeds: all that can be reached without looking. *Grey* is the trained policy with a grey
image in place of each frame.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.learn.figures import PLAIN, TEACHER, bars
from visionrl.checks import evaluation_seeds
from visionrl.job import FIRST_TRAINING_SEED, JobSpec
from visionrl.jobfile import load_job
from visionrl.status import Score
from visionrl_taskapp.envs.registry import prepare
from visionrl_trainer.report.curves import EVALUATION, TRAINING, save_png
from visionrl_trainer.rollout.evaluate import interval, paired_gain

JOB = Path("configs/minigrid-tiny.yaml")
SEARCH_WORLDS, SEARCH_TRIES = 1500, 6000
MOVES = ("left", "right", "forward")
LABELS = {
    "random": "random actions",
    "blind": "best blind play",
    "grey": "SFT + RL, grey images",
    "shuffled": "SFT + RL, shuffled images",
    "before": "supervised (SFT)",
    "after": "SFT + RL",
    "player": "BabyAI's bot",
}
"""Of the players, in the order of the story."""
COLOURS = {"before": TRAINING, "after": EVALUATION, "player": TEACHER}
_AHEAD = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # by direction, as MiniGrid counts them


@dataclass(frozen=True)
class Worlds:
    """Start states of an empty room with one ball; arrays over seeds."""

    player: NDArray[np.int64]
    """[worlds, 2]"""
    direction: NDArray[np.int64]
    ball: NDArray[np.int64]
    side: int
    """Cells of the room, walls included."""

    def reached(self, actions: Sequence[int]) -> NDArray[np.bool_]:
        """Whether a fixed list of actions, by number in :data:`MOVES`, brings the player in front of the ball."""
        player, direction = self.player.copy(), self.direction.copy()
        found = np.zeros(len(player), bool)
        for action in actions:
            if action < 2:
                direction = (direction + (1 if action else -1)) % 4
            else:
                ahead = player + _AHEAD[direction]
                free = (ahead >= 1).all(1) & (ahead <= self.side - 2).all(1) & (ahead != self.ball).any(1)
                player = np.where((free & ~found)[:, None], ahead, player)
            found |= (player + _AHEAD[direction] == self.ball).all(1)
        return found


def worlds(spec: JobSpec, seeds: Sequence[int]) -> Worlds:
    """The start states of the seeds, read from the game."""
    environment = prepare(spec.rollout.env_name, spec.rollout.env_config).make()
    player, direction, ball = [], [], []
    for seed in seeds:
        environment.reset(seed)
        game = environment.game  # type: ignore[attr-defined]
        player.append(game.agent_pos)
        direction.append(game.agent_dir)
        width = game.grid.width
        where = next(i for i, cell in enumerate(game.grid.grid) if cell is not None and cell.type == "ball")
        ball.append((where % width, where // width))
    return Worlds(np.array(player), np.array(direction), np.array(ball), width)


def best_blind(known: Worlds, length: int, tries: int = SEARCH_TRIES, seed: int = 0) -> list[int]:
    """The best fixed list of actions that changing one to three of them at a time finds (with restarts)."""
    rng = np.random.default_rng(seed)
    best, best_score = [2] * length, 0.0
    for _ in range(4):
        plan = rng.integers(0, 3, length)
        score = known.reached(plan.tolist()).mean()
        for _ in range(tries // 4):
            other = plan.copy()
            other[rng.integers(0, length, rng.integers(1, 4))] = rng.integers(0, 3)
            if (tried := known.reached(other.tolist()).mean()) >= score:
                plan, score = other, tried
        if score > best_score:
            best, best_score = plan.tolist(), float(score)
    return best


def successes(file: Path) -> list[float]:
    """1 for each episode of an evaluation that succeeded, in the order of the seeds."""
    episodes = json.loads(file.read_text())["episodes"]
    return [float("success" in episode["unlocked"]) for episode in sorted(episodes, key=lambda each: each["seed"])]


def of_the_run(folder: Path) -> dict[str, list[float]]:
    """The same of the run's own evaluations; only success is rewarded here."""
    found = json.loads((folder / "summary.json").read_text())["evaluation"]
    return {name: [float(value > 0) for value in found[name]["returns"]] for name in ("before", "after")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.minigrid", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="run folders (default: runs)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the table as a PNG, too")
    options = parser.parse_args(arguments)
    job = load_job(JOB)
    run, out = options.runs / job.name, options.runs / f"{job.name}-evidence"
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "import sys, visionrl_cli; sys.exit(visionrl_cli.main())"]
    subprocess.run([*command, "run", str(JOB), "--runs", str(options.runs)], check=True)
    played = {
        "random": ["--policy", "random", "--config", str(JOB)],
        "player": ["--policy", "scripted", "--config", str(JOB)],
        "grey": ["--run", str(run), "--control", "grey"],
        "shuffled": ["--run", str(run), "--control", "shuffled"],
    }
    found: dict[str, list[float]] = of_the_run(run)
    for name, words in played.items():
        file = out / f"{name}.json"
        if not file.exists():
            subprocess.run([*command, "eval", *words, "--out", str(file)], check=True)
        found[name] = successes(file)
    spec, length = job.spec, job.spec.rollout.env_config.length
    plan = best_blind(worlds(spec, range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + SEARCH_WORLDS)), length)
    found["blind"] = worlds(spec, evaluation_seeds(spec)).reached(plan).astype(float).tolist()
    print(f"the best blind play: {' '.join(MOVES[action] for action in plan)}")
    for name, label in LABELS.items():
        print(f"{label:32} {shown(interval(found[name]))}")
    for label, name in (("gain of RL, paired", "before"), ("over the best blind play, paired", "blind")):
        print(f"{label:32} {shown(paired_gain(found[name], found['after']))}")
    if options.picture:
        rows = [(label, percent(interval(found[name])), COLOURS.get(name, PLAIN)) for name, label in LABELS.items()]
        save_png(bars(rows, "episodes that succeed, %", LABELS["blind"], digits=1), options.picture)
    return 0


def percent(score: Score) -> Score:
    return Score(mean=100 * score.mean, low=100 * score.low, high=100 * score.high, episodes=score.episodes)


def shown(score: Score) -> str:
    found = percent(score)
    return f"{found.mean:.1f} % [{found.low:.1f}, {found.high:.1f}] on {found.episodes} seeds"


if __name__ == "__main__":
    sys.exit(main())
