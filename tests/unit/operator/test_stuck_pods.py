"""Pods of lost nodes, pods that do not start, and the last lines of one that failed the job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_api import answer, failure
from tests.support.reconciling import World, running

# --- nodes that are lost


async def lose_node(world: World, node: dict[str, Any] | None) -> None:
    if node is not None:
        world.server.objects["nodes", "", "node1"] = node
    gone_since = "2026-01-01T00:01:00Z"
    world.run_pod("trainer", world.trainer()["metadata"]["uid"], deletionTimestamp=gone_since)
    await world.reconcile()
    await world.reconcile()


READY_NODE: dict[str, Any] = {"metadata": {"name": "node1"}, "spec": {}}
TAINTED_NODE = {"metadata": {"name": "node1"}, "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}}


@pytest.mark.parametrize("node", [None, TAINTED_NODE], ids=["gone", "out of service"])
async def test_a_pod_that_its_lost_node_holds_is_deleted_by_force(node: dict[str, Any] | None) -> None:
    world = await running()
    await lose_node(world, node)
    assert [write for write in world.server.writes if write.startswith("DELETE") and "/pods/" in write]
    assert not [name for name in world.server.objects if name[0] == "pods" and "trainer" in name[2]]


async def test_a_pod_whose_node_may_still_run_it_is_not() -> None:
    world = await running()
    await lose_node(world, READY_NODE)
    assert not [write for write in world.server.writes if write.startswith("DELETE") and "/pods/" in write]
    assert "node node1 has not confirmed" in world.status["reason"]


async def test_an_operator_that_may_not_look_at_nodes_forces_nothing() -> None:
    world = await running()
    world.server.fault = lambda method, path: failure(403, "Forbidden") if "/nodes/" in path else None
    await lose_node(world, None)
    assert not [write for write in world.server.writes if write.startswith("DELETE") and "/pods/" in write]


# --- why pods do not start


def creating(world: World, component: str) -> str:
    """A pod that has a node and whose container does not come up; the pod's uid."""
    name = world.run_pod(component, f"rs-{component}")
    pod = world.server.get("pods", name)
    waiting = {"name": component, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}
    scheduled = [{"type": "PodScheduled", "status": "True"}]
    pod["status"] = {"phase": "Pending", "conditions": scheduled, "containerStatuses": [waiting]}
    world.server.put("pods", pod)
    uid: str = pod["metadata"]["uid"]
    return uid


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "key": secret "demo-key" not found'),
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1": Volume is already used by pod(s) demo-trainer-0',
        ),
    ],
)
async def test_a_volume_that_keeps_a_pod_from_starting_is_the_reason(reason: str, message: str) -> None:
    world = World()
    await world.settle()
    world.run_pod("taskapp", "rs-taskapp")
    uid = creating(world, "inference")
    old = {"reason": "FailedScheduling", "message": "no", "lastTimestamp": "2026-01-01T00:00:05Z"}
    new = {"reason": reason, "message": message, "lastTimestamp": "2026-01-01T00:01:00Z"}
    asked = 0

    def events_of_the_pod(method: str, path: str) -> Any:
        nonlocal asked
        if f"involvedObject.uid%3D{uid}" not in path:
            return None
        asked += 1
        return answer(200, {"metadata": {}, "items": [new, old]})

    world.server.fault = events_of_the_pod
    for _ in range(5):
        await world.reconcile()
    assert world.status["reason"] == f"inference: {reason} ({message})"
    assert asked == 1, "not at every pass"


async def test_a_pod_that_is_created_for_long_without_a_warning_says_since_when() -> None:
    world = World()
    await world.settle()
    world.run_pod("taskapp", "rs-taskapp")
    creating(world, "inference")
    await world.settle()
    assert world.status["reason"] == "inference: ContainerCreating (since 2026-01-01T00:00:00Z)"


# --- what failed the job


async def test_the_last_lines_of_what_failed_the_job_stay_when_its_pod_is_gone() -> None:
    world = await running({"failurePolicy.maxRestarts": 0})
    name = world.run_pod("inference", "rs-inference")
    pod = world.server.get("pods", name)
    log = "x" * 3000 + "\nTraceback (most recent call last):\nRuntimeError: CUDA error: an illegal memory access"
    pod["status"] = {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": "inference",
                "restartCount": 0,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": log}},
            }
        ],
    }
    world.server.put("pods", pod)
    await world.settle()
    assert world.status["phase"] == "Failed"
    assert "inference: exit code 1: RuntimeError: CUDA error" in world.status["reason"]
    assert world.status["failureLog"].endswith("last):\nRuntimeError: CUDA error: an illegal memory access")
    assert len(world.status["failureLog"]) <= 2000
    assert not [found for found in world.server.of("deployments") if "deletionTimestamp" not in found["metadata"]]
