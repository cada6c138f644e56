"""The guard in front of vLLM, over an application that answers everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from visionrl.adapters import SERVER_HEADER
from visionrl_inference import guard
from visionrl_inference.guard import SERVER_VARIABLE, Guard

KEY = "the-key"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("VISIONRL_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv(SERVER_VARIABLE, "this-start")


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 1000)
    app = Guard(Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "OPTIONS"])]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_probes_need_no_key(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/models", "/tokenize", "/invocations", "/healthy", "/health/", "/docs"])
@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(""), {"Authorization": KEY}, {"X-API-Key": KEY}])
async def test_everything_else_does(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        assert (await client.request(method, path, headers=headers)).status_code == 401
    assert (await client.get(path, headers=bearer(KEY))).status_code == 200


async def test_a_task_app_that_runs_elsewhere_asks_with_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONRL_TASKAPP_KEY", "the-servers-key\n")
    app = Guard(Starlette(routes=[Route("/{path:path}", echo)]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        for key, status in ((KEY, 200), ("the-servers-key", 200), ("", 401), ("another", 401)):
            assert (await client.get("/v1/models", headers=bearer(key))).status_code == status


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/x"])
async def test_adapter_administration_is_shut_even_with_the_key(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path)).status_code == 401
    assert (await client.post(path, headers=bearer(KEY))).status_code == 404


async def test_a_body_beyond_the_limit_is_refused_declared_or_not(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    assert (await client.post("/v1/x", headers=bearer(KEY), content=b"x" * 1000)).text == "1000"
    assert (await client.post("/v1/x", headers=bearer(KEY), content=b"x" * 1001)).status_code == 413
    assert (await client.post("/v1/x", headers=bearer(KEY), content=pieces())).status_code == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "٣", "9" * 5000, "x"])
async def test_a_length_that_is_no_number_is_no_error_of_ours(client: httpx.AsyncClient, length: str) -> None:
    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-length", length.encode())]
    assert (await client.post("/v1/x", headers=headers, content=b"x")).status_code == 200


async def test_every_answer_names_the_server_whichever_of_its_processes_gives_it(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/health"), await client.get("/x"), await client.get("/x", headers=bearer(KEY))]
    assert {answer.headers[SERVER_HEADER] for answer in answers} == {"this-start"}


def test_an_empty_key_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        Guard(Starlette())
