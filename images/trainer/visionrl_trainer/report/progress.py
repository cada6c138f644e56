"""Progress in the report: counters, rates, seconds per phase, the expected end."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import fmean

from visionrl import tracing
from visionrl.job import Evaluation
from visionrl.status import EvaluationProgress, Progress, Score
from visionrl_trainer.sync.service import StatusPublisher

FIRST_RATE_SECONDS = 2.0
"""Seconds of a phase before its rate is shown."""
LAST_ITERATIONS = 10
"""Those that are left are expected to take as long as these: some of them share the server with an evaluation."""


class Meter:
    """Counts episodes, times phases, and updates the publisher's progress."""

    def __init__(self, publisher: StatusPublisher, total: int) -> None:
        self.publisher = publisher
        self.seconds: dict[str, float] = defaultdict(float)
        self._phase_started, self._phase_episodes = time.monotonic(), 0
        self._lap: dict[str, float] = defaultdict(float)
        self._lap_started = time.monotonic()
        self._iteration_seconds = deque[float](maxlen=LAST_ITERATIONS)
        self._evaluation_seconds = 0.0
        """What the last evaluation took."""
        self.set(total=total)

    def set(self, **changes: object) -> None:
        """Replace fields of the progress."""
        progress = self.publisher.report.progress.model_copy(update=changes)
        self.publisher.update(progress=progress)

    @property
    def progress(self) -> Progress:
        return self.publisher.report.progress

    def episode(self) -> None:
        """Count a training episode; the rate is that of the phase so far."""
        self._phase_episodes += 1
        elapsed = time.monotonic() - self._phase_started
        changes: dict[str, object] = {"episodes": self.progress.episodes + 1}
        if elapsed > FIRST_RATE_SECONDS:
            changes["episodes_per_minute"] = round(60 * self._phase_episodes / elapsed, 1)
        self.set(**changes)

    @contextlib.contextmanager
    def phase(self, name: str, message: str) -> Iterator[None]:
        """Time a phase and show its message."""
        self.publisher.update(message=message)
        started = self._phase_started = time.monotonic()
        self._phase_episodes = 0
        try:
            with tracing.span(name):
                yield
        finally:
            for seconds in (self.seconds, self._lap):
                seconds[name] += time.monotonic() - started

    def lap(self) -> dict[str, float]:
        """Seconds per phase since the last lap, and in no phase: ``other``."""
        now = time.monotonic()
        seconds = dict(self._lap)
        seconds["other"] = max(0.0, now - self._lap_started - sum(seconds.values()))
        self._lap.clear()
        self._lap_started = now
        return {name: round(value, 3) for name, value in seconds.items()}

    def iteration(self, done: int, total: int, seconds: float, evaluation: Evaluation) -> None:
        """An iteration is complete, after so many seconds. Those that are left are expected to take as long as the last
        ones on average, and an evaluation as long as the last.

        Evaluations are played beside the training, which waits for one that is not over when the next is due; the last
        comes after it.
        """
        self._iteration_seconds.append(seconds)
        seconds_each, each = fmean(self._iteration_seconds), self._evaluation_seconds
        left = seconds_each * (total - done)
        if evaluations := evaluations_left(evaluation, done, total):
            left += each + (evaluations - 1) * max(0.0, each - seconds_each * evaluation.every_iterations)
        end = datetime.now(UTC) + timedelta(seconds=left)
        expected = done < total or evaluations > 0
        self.set(iteration=done, total=total, eta=end.strftime("%Y-%m-%dT%H:%M:%SZ") if expected else None)

    def evaluation_begins(self, seeds: int) -> None:
        """An evaluation of so many held-out seeds is under way."""
        self.set(evaluation=self.progress.evaluation.model_copy(update={"played": 0, "seeds": seeds}))

    def evaluation_episode(self) -> None:
        """Count a seed of the evaluation under way."""
        known = self.progress.evaluation
        self.set(evaluation=known.model_copy(update={"played": (known.played or 0) + 1}))

    def evaluation(self, iteration: int, score: Score, seconds: float) -> None:
        """An evaluation is complete; the one at iteration 0 is that before training."""
        self._evaluation_seconds = seconds
        known = self.progress.evaluation
        before = score if iteration == 0 else known.before
        self.set(evaluation=EvaluationProgress(before=before, latest=score, latest_iteration=iteration))
        if self.progress.iteration >= self.progress.total:
            self.set(eta=None)


def evaluations_left(evaluation: Evaluation, done: int, total: int) -> int:
    """Evaluations that are due after iteration ``done``: at the end, and at every multiple on the way."""
    if not evaluation.episodes:
        return 0
    every = evaluation.every_iterations
    return 1 + (len([each for each in range(done, total) if each % every == 0]) if every else 0)
