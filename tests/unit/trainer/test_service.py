"""The trainer's HTTP side: keys, versions, the base."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")

from tests.support.ports import free_port
from tests.support.until import until
from visionrl.adapters import write_manifest
from visionrl.status import Progress, TrainerReport
from visionrl_trainer.sync import service
from visionrl_trainer.sync.publish import AdapterStore
from visionrl_trainer.sync.service import StatusPublisher, application, serve

KEY = {"Authorization": "Bearer right"}


@pytest.fixture
def publisher(tmp_path: Path) -> StatusPublisher:
    publisher = StatusPublisher(TrainerReport(phase="Training", message="iteration 3"))
    publisher.adapters = AdapterStore(tmp_path / "adapters", "crafter")
    version = tmp_path / "adapters" / "crafter-v000002-0123456789ab"
    version.mkdir()
    (version / "adapter_config.json").write_text("{}")
    (version / "adapter_model.safetensors").write_bytes(b"weights")
    write_manifest(version)
    return publisher


@pytest.fixture
def client(publisher: StatusPublisher) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(application(publisher, "right")), base_url="http://trainer")


async def test_health_needs_no_key_and_everything_else_does(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).status_code == 200
    for path in ("/status", "/adapters/crafter-v000002-0123456789ab/manifest.json", "/base/manifest.json", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert "right" not in answer.text


async def test_metrics_are_open_and_hold_the_numbers_of_the_report(
    client: httpx.AsyncClient, publisher: StatusPublisher
) -> None:
    publisher.update(progress=Progress(iteration=3, total=9, reward=1.5))
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    lines = answer.text.splitlines()
    assert "visionrl_trainer_iteration 3" in lines
    assert "visionrl_trainer_reward 1.5" in lines
    assert 'visionrl_trainer_phase{phase="Training"} 1' in lines
    assert "None" not in answer.text


async def test_the_report_is_what_the_status_shows(client: httpx.AsyncClient) -> None:
    answer = await client.get("/status", headers=KEY)
    assert TrainerReport.model_validate_json(answer.content).message == "iteration 3"


async def test_a_published_version_arrives_as_its_manifest_says(client: httpx.AsyncClient) -> None:
    manifest = (await client.get("/adapters/crafter-v000002-0123456789ab/manifest.json", headers=KEY)).json()
    answer = await client.get("/adapters/crafter-v000002-0123456789ab/adapter_model.safetensors", headers=KEY)
    assert answer.content == b"weights"
    assert manifest["files"]["adapter_model.safetensors"]["size"] == 7


@pytest.mark.parametrize(
    "path", ["crafter-v000003-0123456789ab/manifest.json", "..%2f..%2fetc/passwd", "crafter-v000002-0123456789ab/other"]
)
async def test_what_was_not_published_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/adapters/{path}", headers=KEY)).status_code == 404


async def test_the_base_is_waited_for_and_absent_without_a_warm_start(
    client: httpx.AsyncClient, publisher: StatusPublisher, tmp_path: Path
) -> None:
    assert (await client.get("/base/manifest.json", headers=KEY)).status_code == 404
    publisher.exports_base = True
    assert (await client.get("/base/manifest.json", headers=KEY)).status_code == 503
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    write_manifest(base)
    publisher.base = base
    listed = (await client.get("/base/manifest.json", headers=KEY)).json()["files"]
    assert set(listed) == {"config.json"}
    assert (await client.get("/base/config.json", headers=KEY)).text == "{}"


async def flood(writer: asyncio.StreamWriter) -> None:
    """100 MB of headers."""
    for index in range(100_000):
        writer.write(b"x-%d: %b\r\n" % (index, b"v" * 1000))
        await writer.drain()


async def test_a_flood_of_headers_without_a_key_is_cut_off(publisher: StatusPublisher) -> None:
    port = free_port()
    async with serve(application(publisher, "right"), "127.0.0.1", port):
        for beginning in (b"GET /status HTTP/1.1\r\n", b"GET /status HTTP/1.1\r\nx: ", b"GET /"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning)
            with pytest.raises(ConnectionError):
                await flood(writer)
            writer.transport.abort()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/status", headers=KEY)).status_code == 200


async def test_the_report_is_answered_beside_half_open_connections_without_end(
    publisher: StatusPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "connection_limit", lambda: 4)
    port = free_port()
    async with serve(application(publisher, "right"), "127.0.0.1", port):
        connections, ends = [], []
        for _ in range(16):
            connections.append(await asyncio.open_connection("127.0.0.1", port))
            connections[-1][1].write(b"GET /status HTTP/1.1\r\nx:")
            ends.append(asyncio.create_task(connections[-1][0].read()))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/status", headers=KEY)).status_code == 200
        await until(lambda: sum(not end.done() for end in ends) <= 4)
        for _, writer in connections:
            writer.transport.abort()
        await asyncio.gather(*ends, return_exceptions=True)
