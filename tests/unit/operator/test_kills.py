"""The operator is killed after each single write of a job's life: it goes on to the same end.

A life is a series of steps: somebody does something, and the operator works until it has nothing left to write. Each
step is taken once as a whole, and then, from the same beginning, once for each of its writes by a process that dies
after it and is followed by another one.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.support.fake_api import Died, FakeApi
from tests.support.reconciling import World
from tests.unit.operator.test_export import COPY, EXPORT, container, exporter_pod, exporters
from visionrl_core.kinds import Kueue

SERVERS = {"demo-taskapp": "taskapp", "demo-inference": "inference"}


class LivingWorld(World):
    """A cluster whose nodes and controllers act when a test says so, and that takes no second trainer."""

    def __init__(self, changes: dict[str, Any] | None = None, kueue: Kueue | None = None) -> None:
        super().__init__({"failurePolicy.backoffSeconds": 0.0, **(changes or {})}, kueue)
        self.server.webhook = self.webhook
        self.kills = 0
        """How often the operator was killed."""

    def webhook(self, plural: str, old: dict[str, Any] | None, new: dict[str, Any]) -> str | None:
        """Sees every write."""
        if plural == "jobs" and old is None:
            assert not [pod for pod in self.pods() if "trainer" in pod], "two trainers at once"
        return None

    # --- nodes and controllers

    def pods(self) -> list[str]:
        """Those that have not ended."""
        ended = ("Succeeded", "Failed")
        return [pod["metadata"]["name"] for pod in self.server.of("pods") if pod["status"]["phase"] not in ended]

    def nodes_act(self) -> None:
        """Pods run, and those whose makers are gone have ended."""
        self.server.finish_deletions()
        makers = {body["metadata"]["name"]: body for body in self.server.of("deployments") + self.server.of("jobs")}
        for key in list(self.server.objects):
            if key[0] == "pods" and not any(key[2].startswith(maker) for maker in makers):
                del self.server.objects[key]
        for name, maker in makers.items():
            if "-export-" in name:
                continue  # a test says what becomes of it
            pod = self.server.objects.get(("pods", "default", f"{name}-1"), {"metadata": {"annotations": None}})
            if pod["metadata"]["annotations"] == maker["spec"]["template"]["metadata"]["annotations"]:
                continue
            made = self.run_pod(SERVERS.get(name, "trainer"), maker["metadata"]["uid"])
            pod = self.server.objects.pop(("pods", "default", made))
            pod["metadata"]["name"] = f"{name}-1"
            self.server.put("pods", pod)

    def training_ends(self, code: int = 0) -> None:
        pod = self.server.get("pods", f"{self.trainer()['metadata']['name']}-1")
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": "2026-01-01T00:00:01Z"}
        pod["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": "trainer", "restartCount": 0, "state": {"terminated": ended}}],
        }
        self.server.put("pods", pod)

    # --- kills

    async def settle_whatever_is_killed(self) -> None:
        """Work until nothing is left to write; the same with a kill after each of the writes."""
        objects, revision, before = copy.deepcopy(self.server.objects), self.server.revision, len(self.server.writes)
        await self.settle()
        for lives in range(len(self.server.writes) - before):
            other = copy.copy(self)
            other.server = FakeApi(copy.deepcopy(objects), webhook=other.webhook, revision=revision)
            other.restart()
            other.server.lives = lives
            try:
                await other.settle()
            except Died:
                self.kills += 1
            other.restart()
            await other.settle()
            assert end_state(other) == end_state(self), f"killed after {lives} of its writes"

    async def live(self, steps: int) -> None:
        for _ in range(steps):
            await self.settle_whatever_is_killed()
            self.nodes_act()
        await self.settle_whatever_is_killed()


def end_state(world: World) -> Any:
    """What exists and what it says, without times and what differs between any two lives."""
    status = copy.deepcopy(world.status)
    for name in ("startTime", "completionTime", "activeSeconds", "activeSince"):
        status.pop(name, None)
    for each in (*status["conditions"], *status.get("attempts", []), *status.get("failures", [])):
        for name in ("lastTransitionTime", "started", "ended", "at"):
            each.pop(name, None)
    names = sorted(key for key in world.server.objects if key[0] != "events")
    going = sorted(key for key, body in world.server.objects.items() if "deletionTimestamp" in body["metadata"])
    workloads = [
        {each["type"]: (each["status"], each["reason"]) for each in body.get("status", {}).get("conditions", ())}
        for body in world.server.of("workloads")
    ]
    return status, names, going, workloads


async def test_a_life_with_a_crash_and_an_end() -> None:
    world = LivingWorld({"storage.runSize": "1Gi"})
    await world.live(3)
    assert world.status["phase"] == "Running"
    world.training_ends(1)
    await world.live(3)
    assert (world.status["phase"], world.status["attempt"], world.status["restarts"]) == ("Running", 1, 1)
    world.training_ends()
    await world.live(2)
    assert world.status["phase"] == "Complete"
    assert world.kills > 20


async def test_a_suspension() -> None:
    world = LivingWorld()
    await world.live(3)
    world.change(suspend=True)
    await world.live(2)
    assert world.status["phase"] == "Suspended"
    assert not world.pods()
    world.change(suspend=False)
    await world.live(3)
    assert (world.status["phase"], world.status["attempt"], world.status["restarts"]) == ("Running", 1, 0)


async def test_a_new_key() -> None:
    world = LivingWorld()
    await world.live(3)
    del world.server.objects["secrets", "default", "demo-key"]
    world.seconds += 3600  # Secrets are not watched
    await world.live(4)
    assert (world.status["phase"], world.status["restarts"]) == ("Running", 0)
    assert world.status["attempt"] == 1
    keys = {pod["metadata"]["annotations"]["visionrl.dev/key"] for pod in world.server.of("pods")}
    assert len(keys) == 1, "all components have the new key"


async def test_a_deleted_job_that_had_failed() -> None:
    world = LivingWorld({"failurePolicy.maxRestarts": 0})
    await world.live(3)
    world.training_ends(1)
    await world.live(2)
    assert world.status["phase"] == "Failed"
    assert not world.server.of("deployments")


async def test_an_export() -> None:
    world = LivingWorld({**EXPORT, "storage.retention": {"whenFinished": "Delete"}})
    await world.live(3)
    world.training_ends()
    await world.live(2)
    [job] = exporters(world)
    assert world.server.of("persistentvolumeclaims"), "what it copies from"
    words = json.dumps({"version": "demo-v000003-0a1b2c3d4e5f", "copies": [COPY]})
    exporter_pod(world, container({"terminated": {"exitCode": 0, "reason": "Completed", "message": words}}))
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    world.server.put("jobs", job)
    await world.settle_whatever_is_killed()
    assert world.status["result"]["copies"] == [COPY]
    world.server.finish_deletions()
    await world.settle_whatever_is_killed()
    assert not world.server.of("persistentvolumeclaims"), "it is gone when there are copies"


async def test_a_lost_claim() -> None:
    world = LivingWorld()
    await world.live(3)
    [claim] = world.server.of("persistentvolumeclaims")
    del world.server.objects["persistentvolumeclaims", "default", claim["metadata"]["name"]]
    world.training_ends(1)
    await world.live(3)
    assert world.condition("ResultKept")["reason"] == "ClaimMadeAnew"
    assert (world.status["phase"], world.status["attempt"]) == ("Running", 1)
