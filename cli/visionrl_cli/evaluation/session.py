"""One evaluation, from the command's arguments to its results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from visionrl.documents import DocumentError
from visionrl.errors import leaves
from visionrl.job import FIRST_TRAINING_SEED
from visionrl.jobfile import JobFileError
from visionrl_cli.evaluation.components import Addresses, Components, banned_ids, check_task_app, lost_traces
from visionrl_cli.evaluation.plan import EvalOptions, Plan, make_plan
from visionrl_cli.evaluation.results import Journal, check_same_seeds, compared, make_results, read_results
from visionrl_cli.evaluation.text import EvalError
from visionrl_cli.evaluation.view import View, choose_view, show
from visionrl_cli.files import given_key
from visionrl_local.folder import LocalError, LocalFolder
from visionrl_local.run import Signals
from visionrl_local.view import error, refuse
from visionrl_trainer.rollout.client import RolloutRefused, TaskApp
from visionrl_trainer.rollout.evaluate import EpisodeScore, play_seeds

PATIENCE_SECONDS = 60.0
"""Seconds that the task app or inference may be unreachable before the evaluation fails."""


def evaluate(options: EvalOptions) -> int:
    """Play, print, write. Exit code: 0 done, 1 refused or failed, 128 + n after signal n."""
    logging.basicConfig(format="visionrl: %(message)s", level=logging.WARNING)
    try:
        return asyncio.run(_evaluate(options))
    except* (EvalError, LocalError, JobFileError, RolloutRefused, OSError) as group:
        problem = next(leaves(group))
        assert isinstance(problem, Exception)
        refuse(problem)
    return 1


async def _evaluate(options: EvalOptions) -> int:
    plan = make_plan(options)
    other = read_results(options.against) if options.against else None
    if other and options.against:
        check_same_seeds(options.against, other, plan.seeds)
    if options.trace_db:
        options.trace_db.mkdir(parents=True, exist_ok=True)
    with _locked(plan):
        journal = Journal(options.out, plan.settings(), plan.seeds, f"eval/{secrets.token_hex(6)}")
        view = choose_view(len(plan.seeds))
        if max(plan.seeds) >= FIRST_TRAINING_SEED:
            view.note(f"warning: seeds from {FIRST_TRAINING_SEED} on are training's; the policy may have seen them")
        if journal.done:
            view.note(f"{len(journal.done)} of {len(plan.seeds)} episodes are in {journal.file}")
        session = Session(options, plan, journal, view)
        received = await session.run()
    if received:
        kept = f"the same command resumes from {journal.file}" if journal.file else "nothing is kept without --out"
        error(f"stopped after {len(journal.done)} of {len(plan.seeds)} episodes; {kept}")
        return 128 + received
    episodes = tuple(journal.done[seed] for seed in plan.seeds)
    results = make_results(plan.player, plan.settings(), episodes, session.per_minute)
    if other and options.against:
        results = compared(results, options.against, other)
    journal.finish(results)
    print(results.model_dump_json(indent=2)) if options.as_json else show(results)
    return 0


class Session:
    """Plays the episodes of an evaluation."""

    def __init__(self, options: EvalOptions, plan: Plan, journal: Journal, view: View) -> None:
        self._options, self._plan, self._journal, self._view = options, plan, journal, view
        self._components = Components(plan, options.trace_db, view.note)
        self.per_minute: float | None = None
        """Episodes per minute of this session, without the start of its components."""

    async def run(self) -> signal.Signals | None:
        """Play the remaining episodes; returns the signal that ended it, if one did."""
        left = tuple(seed for seed in self._plan.seeds if seed not in self._journal.done)
        signals = Signals(on_second=self._components.kill)
        playing = asyncio.create_task(self._play(left)) if left else asyncio.create_task(asyncio.sleep(0))
        stopped = asyncio.create_task(signals.stop.wait())
        try:
            await asyncio.wait({playing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                self._view.note("stopping; Ctrl-C again kills")
                playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing
        finally:
            stopped.cancel()
            self._view.close()
        return signal.Signals(signals.received) if signals.received else None

    async def _play(self, seeds: tuple[int, ...]) -> None:
        async with self._addresses() as addresses:
            policy = self._plan.policy
            if self._plan.local:
                banned = await banned_ids(self._plan.local)
                served = {"inference_url": addresses.inference, "banned_token_ids": banned}
                policy = policy.model_copy(update={"config": policy.config.model_copy(update=served)})
            spec = self._plan.job.spec
            self._view.note(f"{self._plan.player} plays {len(seeds)} episodes")
            began = time.monotonic()
            async with TaskApp(addresses.task_app, addresses.key, spec.rollout.max_concurrent) as taskapp:
                playing = asyncio.create_task(
                    play_seeds(taskapp, spec, policy, seeds, self._journal.run, PATIENCE_SECONDS, self._on_score)
                )
                broken = asyncio.create_task(self._components.broken())
                try:
                    await asyncio.wait({playing, broken}, return_when=asyncio.FIRST_COMPLETED)
                    if broken.done():
                        raise broken.result()
                    await playing
                finally:
                    for task in (playing, broken):
                        task.cancel()
                    await asyncio.wait({playing, broken})
            self.per_minute = 60 * len(seeds) / (time.monotonic() - began)
            if self._options.trace_db and (lost := await lost_traces(addresses)):
                error(f"warning: {self._options.trace_db}: {lost}")

    @contextlib.asynccontextmanager
    async def _addresses(self) -> AsyncIterator[Addresses]:
        if self._options.task_app is None:
            async with self._components.running() as addresses:
                yield addresses
        else:
            key = task_app_key(self._options.task_app_key_file)
            await check_task_app(self._options.task_app, key)
            yield Addresses(self._options.task_app, key)

    def _on_score(self, score: EpisodeScore, why: str) -> None:
        if score.aborted and (not score.turns or score.aborted == "cancelled"):
            raise EvalError(f"seed {score.seed} could not be played: {score.aborted}: {why}")
        self._journal.add(score)
        done = self._journal.done
        self._view.played(len(done), sum(each.score for each in done.values()) / len(done))


def task_app_key(file: Path | None) -> str:
    """The key of a remote task app. Raises :class:`EvalError`, ``OSError``."""
    try:
        key = given_key(file)
    except DocumentError as problem:
        raise EvalError(f"{file} {problem}") from None
    if not key:
        raise EvalError(f"{file} is empty" if file else "the task app's key is needed: set ENVIRONMENT_API_KEY")
    return key


@contextlib.contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """A run is either trained or evaluated: its inference server's folder for adapters has the job's name."""
    folder = plan.local.folder if plan.local else None
    with LocalFolder(folder).lock() if folder else contextlib.nullcontext():
        yield
