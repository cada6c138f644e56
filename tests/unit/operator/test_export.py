"""The exporter's Job as the operator makes it and reads it, against an API server in memory."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from tests.support.fake_api import Died
from tests.support.reconciling import World, running

EXPORT = {"storage.export": {"adapter": "s3://bucket/crafter"}}
COPY = {"to": "s3://bucket/crafter", "digest": "0" * 64, "bytes": 42}


async def complete() -> World:
    world = await running(EXPORT)
    world.trainer_ends(0)
    return world


def exporters(world: World) -> list[dict[str, Any]]:
    return [job for job in world.server.of("jobs") if "-export-" in job["metadata"]["name"]]


def exporter_pod(world: World, status: dict[str, Any]) -> None:
    [job] = exporters(world)
    template = job["spec"]["template"]["metadata"]
    metadata = {
        "name": "demo-export-pod",
        "namespace": "default",
        "labels": template["labels"],
        "annotations": template["annotations"],
        "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
    }
    existing = world.server.objects.get(("pods", "default", "demo-export-pod"), {"metadata": {}})["metadata"]
    world.server.put("pods", {"metadata": {**existing, **metadata}, "spec": {"nodeName": "n"}, "status": status})


def container(state: dict[str, Any], last: dict[str, Any] | None = None) -> dict[str, Any]:
    status = {"name": "export", "restartCount": 1, "state": state, "lastState": last or {}}
    return {"phase": "Running", "containerStatuses": [status]}


async def test_the_exporter_reports_through_its_termination_message() -> None:
    world = await complete()
    await world.settle()
    assert world.status["phase"] == "Complete"
    crash = {"terminated": {"exitCode": 1, "reason": "Error", "message": "a line\nPermissionError: Access Denied\n"}}
    exporter_pod(world, container({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}, crash))
    await world.settle()
    assert world.status["result"]["message"] == "PermissionError: Access Denied"
    assert world.condition("Exported")["status"] == "False"
    exporter_pod(world, container({"waiting": {"reason": "CreateContainerConfigError", "message": 'no secret "keys"'}}))
    await world.settle()
    assert world.status["result"]["message"] == 'CreateContainerConfigError: no secret "keys"'

    words = json.dumps({"version": "demo-v000003-0a1b2c3d4e5f", "copies": [COPY]})
    exporter_pod(world, container({"terminated": {"exitCode": 0, "reason": "Completed", "message": words}}))
    [job] = exporters(world)
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    world.server.put("jobs", job)
    await world.settle()
    assert world.condition("Exported")["status"] == "True"
    assert world.status["result"]["copies"] == [COPY]
    assert world.status["result"]["version"] == "demo-v000003-0a1b2c3d4e5f"
    assert "Exported" in world.events()
    assert world.status["attempt"] == 0, "its Job is none of the trainer's"


async def test_an_exporter_that_is_done_beside_a_sidecar_has_copied_and_gives_its_node_back() -> None:
    world = await complete()
    await world.settle()
    words = json.dumps({"version": "demo-v000003-0a1b2c3d4e5f", "copies": [COPY]})
    status = container({"terminated": {"exitCode": 0, "reason": "Completed", "message": words}})
    status["containerStatuses"].insert(0, {"name": "proxy", "restartCount": 0, "state": {"running": {}}})
    exporter_pod(world, status)
    await world.settle()
    assert world.condition("Exported")["status"] == "True"
    assert world.status["result"]["copies"] == [COPY]
    [job] = exporters(world)
    assert "deletionTimestamp" in job["metadata"], "it would never end"
    world.server.finish_deletions(world.store)
    await world.settle()
    assert world.condition("Exported")["status"] == "True"
    assert exporters(world) == []


@pytest.mark.parametrize("lives", range(8))
async def test_an_operator_that_dies_at_any_write_of_an_export_leaves_one_exporter(lives: int) -> None:
    world = await complete()
    world.server.lives = lives
    with contextlib.suppress(Died):
        await world.settle()
    world.restart()
    await world.settle()
    assert len(exporters(world)) == 1
    assert world.condition("Exported")["reason"] == "Exporting"
    assert world.status["phase"] == "Complete"
