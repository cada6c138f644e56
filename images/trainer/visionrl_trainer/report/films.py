"""Films: episodes for people to look at, turn by turn, with the answer's text, the actions, rewards and advantages."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel

from visionrl.checks import evaluation_seeds
from visionrl.durable import write_atomically
from visionrl.frames import decode_png
from visionrl.job import JobSpec
from visionrl.rollout import EnvSpec, PolicySpec, Record, RolloutRequest, RolloutResponse, Safety
from visionrl_trainer.report.not_essential import not_essential
from visionrl_trainer.rollout.batch import EpisodeSamples, Frame, Group, Sample
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.sampler import PATIENCE_SECONDS, Batch

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

TRAINING_FILMS = "training.json"
LONGEST_SIDE = 384
"""Pixels; larger frames are scaled down."""
LOSSLESS_BYTES = 6_000
"""A frame that needs more without loss is compressed with loss."""
FILM_BYTES = 600_000
"""Pictures of one film; turns after that have none, so that a page with four films loads on a phone."""
TEXT_CHARACTERS = 2_000
"""Of an answer; the rest is cut off."""


class FilmTurn(BaseModel):
    """One decision."""

    image: str
    """The newest frame that the policy saw, as a data URL; empty for a policy that sees none."""
    text: str
    """The answer."""
    actions: list[str]
    events: list[str]
    """What happened for the first time in the episode."""
    reward: float
    valid: bool
    error: str | None = None
    advantage: float | None = None
    """None for an episode that is not trained on."""


class Film(BaseModel):
    """One episode."""

    iteration: int
    """Iterations that the policy had learned."""
    policy: str
    seed: int
    score: float
    """Return of the episode."""
    turns: list[FilmTurn]


# --- what is filmed


async def record(taskapp: TaskApp, spec: JobSpec, policy: PolicySpec, iteration: int) -> Film:
    """Play the first held-out seed once more, and keep its frames."""
    seed = evaluation_seeds(spec)[0]
    request = RolloutRequest(
        run_id=f"{policy.config.model}/replay/s{seed}",
        mode="eval",
        env=EnvSpec(env_name=spec.rollout.env_name, config=spec.rollout.env_config, seed=seed),
        policy=policy,
        record=Record(trajectories=False, images=True),
        safety=Safety(max_ops=spec.rollout.max_ops, max_time_s=spec.rollout.max_time_s),
    )
    response = await taskapp.rollout(request, PATIENCE_SECONDS)
    return evaluation_film(response, seed, policy.config.model, iteration)


def evaluation_film(response: RolloutResponse, seed: int, policy: str, iteration: int) -> Film:
    """The film of an evaluation's answer that carries its frames."""
    pictures = Pictures()
    turns = [
        FilmTurn(
            image=pictures.of_png(response.images[decision.images[-1]]) if decision.images else "",
            text=decision.text[:TEXT_CHARACTERS],
            actions=decision.actions,
            events=decision.unlocked,
            reward=decision.reward.total,
            valid=decision.valid,
            error=decision.error,
        )
        for decision in response.trajectories[0].decisions
    ]
    score = response.metrics.episode_returns[0]
    return Film(iteration=iteration, policy=policy, seed=seed, score=score, turns=turns)


def training_films(batch: Batch, samples: Sequence[Sample], iteration: int) -> list[Film]:
    """The best and the worst episode of the start state whose episodes differ most. ``samples`` are the batch's, with
    their advantages; ``iteration`` is how many iterations the policy that played had learned."""
    first, found = 0, []
    for group in batch.groups:
        starts = np.cumsum([first, *(len(episode.samples) for episode in group.episodes)])
        first = int(starts[-1])
        found.append((group, starts))
    group, starts = max(found, key=lambda each: _spread(each[0]))
    returns = [sum(episode.rewards) for episode in group.episodes]
    best, worst = int(np.argmax(returns)), int(np.argmin(returns))
    if best == worst:
        worst = (best + 1) % len(returns)
    return [
        _training_film(group.episodes[n], batch, samples[starts[n] : starts[n + 1]], iteration) for n in (worst, best)
    ]


def _spread(group: Group) -> float:
    return float(np.ptp([sum(episode.rewards) for episode in group.episodes]))


def _training_film(episode: EpisodeSamples, batch: Batch, samples: Sequence[Sample], iteration: int) -> Film:
    pictures = Pictures()
    turns = [
        FilmTurn(
            image=pictures.of_frame(batch.frames[sample.images[-1]]) if sample.images else "",
            text=answer.text[:TEXT_CHARACTERS],
            actions=list(answer.actions),
            events=list(answer.events),
            reward=reward,
            valid=answer.valid,
            error=answer.error,
            advantage=sample.advantage,
        )
        for sample, answer, reward in zip(samples, episode.answers, episode.rewards, strict=True)
    ]
    return Film(iteration=iteration, policy=batch.version, seed=episode.seed, score=episode.score, turns=turns)


class FilmMaker:
    """Makes the films of training episodes beside the training: compressing their frames takes a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._task: asyncio.Task[None] | None = None

    def start(self, batch: Batch, samples: Sequence[Sample], iteration: int) -> None:
        """Film the batch, unless an earlier one is not done yet."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make(batch, samples, iteration))

    async def close(self) -> None:
        """Wait for the film that is being made."""
        if self._task is not None:
            await self._task

    async def _make(self, batch: Batch, samples: Sequence[Sample], iteration: int) -> None:
        with not_essential("the films of training episodes"):
            films = await asyncio.to_thread(training_films, batch, samples, iteration)
            await asyncio.to_thread(save_training, films, self.folder)


# --- pictures


class Pictures:
    """Compresses the frames of one film, up to :data:`FILM_BYTES`."""

    def __init__(self) -> None:
        self.bytes = 0

    def of_png(self, encoded: str) -> str:
        """Of a PNG in base64."""
        return "" if self.bytes > FILM_BYTES else self.of_frame(decode_png(base64.b64decode(encoded)))

    def of_frame(self, frame: Frame) -> str:
        """The frame as a data URL; empty once the film is full."""
        if self.bytes > FILM_BYTES:
            return ""
        data = webp(frame)
        self.bytes += len(data)
        return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def webp(frame: Frame) -> bytes:
    """The frame as WebP: without loss where that is small, as for plain graphics, else with loss. About 8 ms for
    288 × 288 pixels, without the interpreter's lock."""
    image = Image.fromarray(frame)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    exact, lossy = io.BytesIO(), io.BytesIO()
    image.save(exact, "WEBP", lossless=True, quality=20, method=0)
    if exact.tell() <= LOSSLESS_BYTES:
        return exact.getvalue()
    image.save(lossy, "WEBP", quality=60, method=0)
    return min(exact.getvalue(), lossy.getvalue(), key=len)


# --- files


def save(film: Film, folder: Path) -> None:
    """Keep an evaluation's film as ``<folder>/000012.json``, by its iteration."""
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{film.iteration:06d}.json", film.model_dump_json())


def save_training(films: Sequence[Film], folder: Path) -> None:
    """Keep the last iteration's films; they replace those of the iteration before."""
    folder.mkdir(exist_ok=True)
    write_atomically(folder / TRAINING_FILMS, _Films(films=list(films)).model_dump_json())


def first_and_last(folder: Path) -> list[Film]:
    """The films of the first and the last evaluation; what cannot be read is left out."""
    paths = sorted(folder.glob("[0-9]*.json"))
    first = next((film for path in paths if (film := _read(path, Film))), None)
    last = next((film for path in reversed(paths) if (film := _read(path, Film))), None)
    both = [film for film in (first, last) if film is not None]
    return both[:1] if first == last else both


def last_training(folder: Path) -> list[Film]:
    """The films of the last iteration, worst first; empty where there are none."""
    path = folder / TRAINING_FILMS
    found = _read(path, _Films) if path.exists() else None
    return found.films if found else []


class _Films(BaseModel):
    films: list[Film]


def _read(path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged and left out: %s", path, error)
        return None
