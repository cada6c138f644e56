"""The trainer's HTTP side: its report, and the files that inference fetches."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from visionrl.adapters import MANIFEST
from visionrl.connections import connection_limit, limited_protocol, raise_file_limit
from visionrl.status import TrainerReport
from visionrl_trainer.report.prometheus import CONTENT_TYPE, metrics_text
from visionrl_trainer.report.route import PAGE, report_page
from visionrl_trainer.sync.publish import AdapterStore


class StatusPublisher:
    """The trainer's report and files; the training loop writes them, the service reads them."""

    def __init__(self, report: TrainerReport) -> None:
        self.report = report
        self.adapters: AdapterStore | None = None
        self.probes: AdapterStore | None = None
        """The folder of the canary's probe adapter."""
        self.base: Path | None = None
        """Directory of the base that the warm start made, once it is complete."""
        self.exports_base = False
        """Whether the job's warm start makes a base."""
        self.report_file: Path | None = None
        """The run's page, once the run folder is this trainer's."""

    def update(self, **changes: object) -> None:
        """Replace fields of the report."""
        self.report = self.report.model_copy(update=changes)

    def set_policy(self, **versions: str) -> None:
        """Replace ``trained`` or ``serving``."""
        self.update(policy=self.report.policy.model_copy(update=versions))


class _File(FileResponse):
    """Each chunk is read in a thread: with the stock 64 KB, an adapter's thousand chunks cost four times the processor
    time."""

    chunk_size = 1 << 20


OPEN = frozenset({"/health", "/metrics"})


class RequireKey:
    """Requires the job's key on every path except ``/health`` and ``/metrics``."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected) and scope["path"] != PAGE:
                await JSONResponse({"error": "unauthorized"}, status_code=401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def application(publisher: StatusPublisher, key: str) -> Starlette:
    """The ASGI application."""

    async def health(request: Request) -> Response:
        return JSONResponse({"healthy": True})

    async def status(request: Request) -> Response:
        return Response(publisher.report.model_dump_json(by_alias=True), media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(metrics_text(publisher.report), media_type=CONTENT_TYPE)

    async def adapter(request: Request) -> Response:
        stores, params = (publisher.adapters, publisher.probes), request.path_params
        paths = (store.path(params["name"], params["file"]) for store in stores if store is not None)
        path = next(filter(None, paths), None)
        return _File(path) if path else JSONResponse({"error": "no such adapter"}, status_code=404)

    async def base(request: Request) -> Response:
        if not publisher.exports_base:
            return JSONResponse({"error": "this job serves model.base as it is"}, status_code=404)
        if publisher.base is None:
            return JSONResponse({"error": "the warm start is still training"}, status_code=503)
        listed = {path.name: path for path in publisher.base.iterdir()}
        path = listed.get(request.path_params["file"])
        return _File(path) if path else JSONResponse({"error": f"no such file; see {MANIFEST}"}, 404)

    async def page(request: Request) -> Response:
        return report_page(request, key, publisher.report_file)

    routes = [
        Route(PAGE, page),
        Route("/health", health),
        Route("/status", status),
        Route("/metrics", metrics),
        Route("/adapters/{name}/{file}", adapter),
        Route("/base/{file}", base),
    ]
    return Starlette(routes=routes, middleware=[Middleware(RequireKey, key=key)])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the trainer


@contextlib.asynccontextmanager
async def serve(app: Starlette, host: str, port: int) -> AsyncIterator[None]:
    """Serve until the block ends. Raises ``OSError`` where the address cannot be bound."""
    listener = socket.create_server((host, port))
    raise_file_limit()
    limited = limited_protocol(connection_limit())
    server = _Server(uvicorn.Config(app, http=limited, ws="none", log_level="warning", timeout_keep_alive=75))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        listener.close()
