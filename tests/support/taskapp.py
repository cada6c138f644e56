"""The task app as a process, and a small OpenAI server that misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.support.ports import free_port
from visionrl.adapters import SERVER_HEADER
from visionrl.tools import tool_call_text

KEY = "the-key-of-this-job"
SERVER = "fake-openai"
"""What :class:`FakeOpenAI` calls its process."""
_START_SECONDS = 120.0


@dataclass
class FakeOpenAI:
    """Answers every completion with the same two actions; the model's name asks for trouble.

    `slow` never answers, `500` always fails, `flaky` fails twice a prompt, `busy` says 429 once a prompt, `refuses`
    says 400 and echoes the headers, `garbage` is no JSON, `no-choices` no completion, `no-ids` lacks token ids,
    `short` lacks a logprob, `prose` calls no tool, `parsed` has the call in `tool_calls`.
    """

    port: int
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    _failures: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.urls.append(str(request.url))
        self.asked.set()
        model = body["model"]
        if trouble := await self._trouble(model, body, request):
            return trouble
        text = "I will gather wood." if model == "prose" else tool_call_text(["do", "do"])
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if model == "parsed":
            function = {"name": "interact_many", "arguments": '{"actions": ["do", "do"]}'}
            message = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        answer: dict[str, Any] = {"model": model, "choices": [choice], "usage": {"prompt_tokens": 4}}
        if body.get("return_token_ids") and model != "no-ids":
            answer["prompt_token_ids"], choice["token_ids"] = [1, 2, 3, 4], [5, 6, 7]
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"logprob": -0.5}] * (2 if model == "short" else 3)}
        return JSONResponse(answer, headers={SERVER_HEADER: SERVER})

    async def _trouble(self, model: str, body: dict[str, Any], request: Request) -> Response | None:
        prompt = f"{model} {body['messages'][-1]}"
        seen = self._failures[prompt] = self._failures.get(prompt, 0) + 1
        match model:
            case "slow":
                while not await request.is_disconnected():  # noqa: ASYNC110 - a closed connection sets no event
                    await asyncio.sleep(0.05)
                return PlainTextResponse("gone")
            case "500":
                return PlainTextResponse("out of memory", 500)
            case "flaky" if seen <= 2:
                return PlainTextResponse("try again", 503)
            case "busy" if seen == 1:
                return PlainTextResponse("busy", 429)
            case "refuses":
                return JSONResponse({"error": f"refused {dict(request.headers)}"}, 400)
            case "garbage":
                return PlainTextResponse("<html>")
            case "no-choices":
                return JSONResponse({"choices": []})
            case _:
                return None


@contextlib.contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    """A running fake on a free loopback port."""
    fake = FakeOpenAI(free_port())
    app = Starlette(routes=[Route("/v1/chat/completions", fake.complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=fake.port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_until(lambda: server.started, "the fake OpenAI server")
        yield fake
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class TaskAppProcess:
    """A task app on a loopback port."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    stopped: tuple[int, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None = KEY) -> httpx.Client:
        headers = {"x-api-key": key} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit code and everything that it printed."""
        if self.stopped is None:
            self.process.send_signal(signal.SIGTERM)
            self.stopped = self.process.wait(timeout=60), self.log.read_text()
        return self.stopped


@contextlib.contextmanager
def taskapp(folder: Path, **variables: str) -> Iterator[TaskAppProcess]:
    """A ready task app that knows `KEY`, with more environment variables; an empty value takes one away."""
    with taskapp_command([sys.executable, "-m", "visionrl_taskapp"], folder, variables) as running:
        yield running


@contextlib.contextmanager
def taskapp_command(command: list[str], folder: Path, variables: Mapping[str, str]) -> Iterator[TaskAppProcess]:
    """The same, started by this command."""
    key_file = folder / "key"
    key_file.write_text(f"{KEY}\n")
    port = free_port()
    settings = {"VISIONRL_KEY_FILE": str(key_file), "VISIONRL_PORT": str(port), "PYTHONFAULTHANDLER": "1", **variables}
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("VISIONRL_", "ENVIRONMENT_"))
    }
    environment = inherited | {name: value for name, value in settings.items() if value}
    log = folder / f"taskapp-{port}.log"
    with log.open("wb") as written:  # a pipe that nobody reads would stop the task app after some thousand lines
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT)
    running = TaskAppProcess(port, process, log)
    try:
        _wait_until(lambda: _is_warm(running), "the task app")
        yield running
    finally:
        ended_by_itself = process.poll() is not None and not running.stopped
        code, output = running.stop()
    assert not ended_by_itself, f"the task app ended with code {code}:\n{output}"


def _is_warm(running: TaskAppProcess) -> bool:
    if running.process.poll() is not None:
        raise RuntimeError(f"the task app ended: {running.log.read_text()}")
    try:
        health = httpx.get(f"{running.url}/health", trust_env=False)
        # Ours says that it is ready also where it has no key, and answers 503 for that.
        return health.status_code == 200 or bool(health.json().get("ready"))
    except httpx.TransportError:
        return False


def _wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start within {_START_SECONDS:g} s")
        time.sleep(0.05)
