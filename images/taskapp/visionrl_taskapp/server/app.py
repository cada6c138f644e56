"""The routes of the task app."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from visionrl import openapi, tracing
from visionrl.rollout import EnvSpec, RolloutRequest
from visionrl_taskapp.envs.registry import Prepared, prepare
from visionrl_taskapp.policies.inference_client import InferenceClient
from visionrl_taskapp.rollouts.episode import Services, UnreachableInferenceError, play
from visionrl_taskapp.rollouts.runs import Played, RunConflictError, Runs
from visionrl_taskapp.rollouts.simulation import Worlds
from visionrl_taskapp.rollouts.traces import DEFAULT_MAX_EPISODES, TraceStore, trace
from visionrl_taskapp.rollouts.trajectory import Episode, response
from visionrl_taskapp.server.auth import KeyGuard
from visionrl_taskapp.server.describe import SERVICE, VERSION, seeds_of, task_info
from visionrl_taskapp.server.responses import BadBodyError, error, json_response, parse_json, raw, read_body
from visionrl_taskapp.server.validation import RequestError, parse_request, unused_fields

log = logging.getLogger(__name__)

REMOTE_CALLS = 256
"""Calls to environments on other machines that wait at once."""
UNUSED = "unused"
"""Key of an answer's ``pipeline_metadata`` with the request's fields that have no effect here."""


@dataclass(frozen=True)
class Settings:
    """What the server is started with."""

    game: Prepared = field(default_factory=lambda: prepare(EnvSpec().env_name, EnvSpec().config))
    """The environment that it describes and warms up; a request may name another one that is installed."""
    keys: tuple[str, ...] = ()
    """Accepted keys; without any, every path but `/health` answers 503."""
    job_server: str | None = None
    """The job's inference server: the only one that gets `job_key`."""
    job_key: str | None = None
    policy_key: str | None = None
    """Key for other inference servers."""
    policy_server: str | None = None
    """The only one of them that gets `policy_key`; None: each one that a request names."""
    trace_dir: Path | None = None
    """Folder of `traces.db`; None keeps no traces."""
    trace_max_episodes: int = DEFAULT_MAX_EPISODES


class TaskApp:
    """The state behind the routes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runs = Runs()
        self.ready = False
        self.episodes = self.aborted = 0
        self._traces = TraceStore(settings.trace_dir, settings.trace_max_episodes) if settings.trace_dir else None
        self._services: Services | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """`/health` is 503 during the warm-up; the end waits for the traces."""
        settings = self.settings
        inference = InferenceClient(
            settings.job_server, settings.job_key, settings.policy_key, settings.policy_server
        )  # fmt: skip
        workers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="simulation")
        waiters = ThreadPoolExecutor(REMOTE_CALLS, thread_name_prefix="remote")
        self._services = Services(Worlds(), inference, workers, waiters, keep_images=self._traces is not None)
        self._loop = asyncio.get_running_loop()
        warming = asyncio.create_task(self._warm_up(workers))
        try:
            yield
        finally:
            warming.cancel()
            await self.runs.stop()
            await inference.close()
            for pool in (workers, waiters):
                pool.shutdown(wait=False, cancel_futures=True)
            if self._traces:
                await asyncio.to_thread(self._traces.close)

    async def _warm_up(self, workers: ThreadPoolExecutor) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(workers, self.settings.game.definition.warm_up)
        except Exception:
            log.exception("warm-up failed; the server will not become ready")
            raise
        self.ready = True
        log.info("ready")

    def stop_soon(self) -> None:
        """End the episodes in flight; safe in a signal handler."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._stop_runs)

    def _stop_runs(self) -> None:
        self._stopping = asyncio.create_task(self.runs.stop())

    # --- routes

    async def root(self, _request: Request) -> Response:
        return json_response(
            {"service": SERVICE, "version": VERSION, "routes": sorted(route.path for route in self.routes())}
        )

    async def health(self, _request: Request) -> Response:
        configured = bool(self.settings.keys)
        healthy = self.ready and configured
        body = {"healthy": healthy, "ready": self.ready, "auth": {"required": True, "configured": configured}}
        return json_response(body, 200 if healthy else 503)

    async def info(self, _request: Request) -> Response:
        traces = self._traces
        return json_response(
            task_info(self.settings.game)
            | {
                "service": {"name": SERVICE, "version": VERSION},
                "runtime": {
                    "ready": self.ready,
                    "playing": self.runs.playing,
                    "episodes": self.episodes,
                    "aborted": self.aborted,
                    "traces": traces
                    and {
                        "path": str(traces.path),
                        "max_episodes": traces.max_episodes,
                        "written": traces.written,
                        "failed": traces.failed,
                        "last_error": traces.last_error,
                    },
                },
            }
        )

    async def task_info(self, request: Request) -> Response:
        seeds = seeds_of(request.query_params.multi_items())
        game = self.settings.game
        infos = [task_info(game, seed) for seed in seeds] or [task_info(game)]
        return json_response(infos[0] if len(infos) == 1 else infos)

    async def openapi(self, _request: Request) -> Response:
        return json_response(openapi.document())

    async def rollout(self, http: Request) -> Response:
        data = parse_json(await read_body(http))
        # In a thread: an environment that was not asked for before may take seconds to be examined.
        request = await asyncio.to_thread(parse_request, data)
        with tracing.span("rollout", "server", http.headers, run_id=request.run_id, seed=request.env.seed):
            return raw(await self.runs.response(request, partial(self._play, unused_fields(data))))

    async def done(self, request: Request) -> Response:
        """The client needs a run no more, `{"run_id": …}`: its cached response is dropped. The body may be empty."""
        body = await read_body(request)
        data = parse_json(body) if body else {}
        run_id = data.get("run_id") if isinstance(data, dict) else None
        return json_response({"ok": True, "forgotten": isinstance(run_id, str) and self.runs.forget(run_id)})

    def routes(self) -> list[Route]:
        return [
            Route("/", self.root),
            Route("/health", self.health),
            Route("/info", self.info),
            Route("/task_info", self.task_info),
            Route("/openapi.json", self.openapi),
            Route("/rollout", self.rollout, methods=["POST"]),
            Route("/done", self.done, methods=["POST"]),
        ]

    async def _play(self, unused: Sequence[str], request: RolloutRequest) -> Played:
        assert self._services, "the lifespan has begun before any request"
        episode = await play(request, self._services)
        self.episodes += 1
        self.aborted += episode.abort is not None
        if self._traces:
            self._traces.write(episode)
        log.info("%s", _summary(episode))
        record = request.record
        inline = trace(episode, record.trace_format) if record.return_trace else None
        answer = response(episode, inline)
        if unused:
            answer.pipeline_metadata[UNUSED] = list(unused)
        return Played(answer.model_dump_json().encode(), keep=episode.abort is None)


def _summary(episode: Episode) -> str:
    request, abort = episode.request, episode.abort
    policy = request.policy.config.model or request.policy.policy_name
    end = f"aborted: {abort.reason}: {abort.message}" if abort else "ok"
    return (
        f"episode {request.run_id} seed={request.env.seed} model={policy!r} "
        f"turns={len(episode.turns)} events={len(episode.unlocked)} {end}"
    )


def create_app(app: TaskApp) -> Starlette:
    """The ASGI application."""
    return Starlette(
        routes=app.routes(),
        middleware=[Middleware(KeyGuard, keys=app.settings.keys)],
        exception_handlers={
            RequestError: _invalid,
            BadBodyError: _bad_body,
            RunConflictError: _conflict,
            UnreachableInferenceError: _unreachable,
            ClientDisconnect: _disconnected,
            HTTPException: _http_error,
            Exception: _bug,
        },
        lifespan=app.lifespan,
    )


async def _invalid(_request: Request, exception: Exception) -> Response:
    assert isinstance(exception, RequestError)
    return error(422, "the request cannot be played", problems=exception.problems)


async def _bad_body(_request: Request, exception: Exception) -> Response:
    assert isinstance(exception, BadBodyError)
    # The rest of the body may still arrive: this connection cannot be used again.
    return error(exception.status, str(exception), {"connection": "close"} if exception.status != 400 else None)


async def _conflict(_request: Request, exception: Exception) -> Response:
    return error(409, str(exception))


async def _unreachable(_request: Request, exception: Exception) -> Response:
    assert isinstance(exception, UnreachableInferenceError)
    return error(424, "the inference server cannot be reached", problems=[exception.problem])


async def _disconnected(_request: Request, _exception: Exception) -> Response:
    return error(400, "the client disconnected")


async def _http_error(_request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)
    return error(exception.status_code, exception.detail, exception.headers)


async def _bug(_request: Request, _exception: Exception) -> Response:
    return error(500, "internal error; the task app's log has the details")
