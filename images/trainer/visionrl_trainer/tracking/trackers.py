"""Sends each iteration's and evaluation's numbers to the job's trackers, beside the training.

A thread of its own does it, so that a tracker that is slow or cannot be reached costs the training nothing. A tracker
that fails is told of once and left out from then on. All of them number their steps by the iteration; a run that
resumes appends to what is there.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from visionrl.job import Job, Mlflow, Trackio, Wandb

logger = logging.getLogger(__name__)

WAITING = 1_000
"""Records that may wait for slow trackers; more are dropped."""
CLOSE_SECONDS = 10.0
"""How long the end of a run waits for trackers."""
TENSORBOARD, TRACKIO, MLFLOW = "tensorboard", "trackio", "mlflow.db"
"""Where they are in the run folder."""


class Tracker(Protocol):
    """One destination of a run's numbers."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Note the numbers of an iteration."""

    def close(self) -> None:
        """Write what is not written yet."""


class Trackers:
    """The trackers of one job, opened and used in a thread of their own."""

    def __init__(self, job: Job, run_dir: Path) -> None:
        self._waiting: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(WAITING)
        self._openers = dict(_openers(job, run_dir))
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        if self._openers:
            self._thread.start()

    def log(self, kind: str, record: Mapping[str, Any], step: int) -> None:
        """Note the numbers of a record under ``kind/name``, and return at once."""
        if not self._openers:
            return
        try:
            self._waiting.put_nowait((dict(numbers(record, kind)), step))
        except queue.Full:
            logger.warning("trackers are behind: %s of iteration %d are dropped", kind, step)

    def close(self) -> None:
        """Wait a moment for what is not sent yet."""
        if self._thread.is_alive():
            try:
                self._waiting.put(None, timeout=CLOSE_SECONDS)
            except queue.Full:
                return
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        trackers: dict[str, Tracker] = {}
        for name, opener in self._openers.items():
            _tried(trackers, name, functools.partial(_open, trackers, name, opener))
        while (item := self._waiting.get()) is not None:
            for name, tracker in list(trackers.items()):
                _tried(trackers, name, functools.partial(tracker.log, *item))
        for name, tracker in list(trackers.items()):
            _tried(trackers, name, tracker.close)


def _open(trackers: dict[str, Tracker], name: str, opener: Callable[[], Tracker]) -> None:
    trackers[name] = opener()


def _tried(trackers: dict[str, Tracker], name: str, action: Callable[[], object]) -> None:
    """Do something with a tracker; one that fails is left out."""
    try:
        action()
    except BaseException as error:  # wandb ends with SystemExit where it has no key
        trackers.pop(name, None)
        logger.warning("%s is not used any more: %s: %s", name, type(error).__name__, error)


def numbers(record: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    """The finite numbers of a record, those of objects in it included, under ``prefix/name``."""
    for name, value in record.items():
        if isinstance(value, Mapping) and "counts" not in value:
            yield from numbers(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield f"{prefix}/{name}".replace(" ", "_"), float(value)


# --- the trackers


def _openers(job: Job, run_dir: Path) -> Iterable[tuple[str, Callable[[], Tracker]]]:
    tracking = job.spec.tracking
    if tracking.tensorboard:
        yield "TensorBoard", lambda: _TensorBoard(run_dir / TENSORBOARD)
    if (trackio := tracking.trackio) is not None:
        yield "Trackio", lambda: _Trackio(trackio, job.name, run_dir / TRACKIO)
    if (wandb := tracking.wandb) is not None:
        yield "Weights & Biases", lambda: _Wandb(wandb, job, run_dir)
    if (mlflow := tracking.mlflow) is not None:
        yield "MLflow", lambda: _Mlflow(mlflow, job.name, run_dir)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), flush_secs=10)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Trackio:
    def __init__(self, settings: Trackio, name: str, folder: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        import trackio

        self.run = trackio.init(
            project=settings.project, name=name, space_id=settings.space_id, resume="allow", embed=False
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


class _Wandb:
    def __init__(self, settings: Wandb, job: Job, folder: Path) -> None:
        import wandb

        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=job.name,
            mode=settings.mode,
            dir=str(folder),
            config=job.spec.model_dump(by_alias=True, mode="json"),
        )
        # Its own step only grows, and drops what is of an earlier one: an evaluation comes after later iterations.
        self.run.define_metric("iteration", hidden=True)
        self.run.define_metric("*", step_metric="iteration")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log({**numbers, "iteration": step})

    def close(self) -> None:
        self.run.finish()


class _Mlflow:
    def __init__(self, settings: Mlflow, name: str, folder: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self.metric = Metric
        self.client = MlflowClient(settings.tracking_uri or f"sqlite:///{folder / MLFLOW}")
        experiment = self.client.get_experiment_by_name(settings.experiment)
        identifier = experiment.experiment_id if experiment else self.client.create_experiment(settings.experiment)
        self.run = self.client.create_run(identifier, run_name=name).info.run_id

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        now = round(1000 * time.time())
        metrics = [self.metric(name, value, now, step) for name, value in numbers.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run)
