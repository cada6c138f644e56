"""The trainer's HTTP side: keys, versions, the base."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")

from visionrl.adapters import write_manifest
from visionrl.status import TrainerReport
from visionrl_trainer.sync.publish import AdapterStore
from visionrl_trainer.sync.service import StatusPublisher, application

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
