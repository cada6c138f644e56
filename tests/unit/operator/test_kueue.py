"""The operator and Kueue at one API server, whose webhook has Kueue's rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.fake_api import KUEUE, failure
from tests.support.fake_kueue import FakeKueue, condition, takes_quota, true, webhook
from tests.support.reconciling import DEMO
from tests.unit.operator.test_kills import LivingWorld
from visionrl_operator.status_writer import Outdated


class QueuedWorld(LivingWorld):
    """A cluster with Kueue, which acts when a test says so."""

    def __init__(self, changes: dict[str, Any] | None = None, **kueue: Any) -> None:
        self.kueue_acts_as = FakeKueue(**kueue)
        super().__init__({"queueName": "gpus", **(changes or {})}, KUEUE)
        flavor = {"metadata": {"name": "h200"}, "spec": {"nodeLabels": {"gpu": "h200"}}}
        self.server.objects["resourceflavors", "", "h200"] = flavor

    def webhook(self, plural: str, old: dict[str, Any] | None, new: dict[str, Any]) -> str | None:
        super().webhook(plural, old, new)
        if plural in ("deployments", "jobs") and "-export-" not in new["metadata"]["name"]:
            found = self.server.objects.get(("workloads", "default", "demo-workload"))
            assert found is not None, "a pod without a Workload"
            assert true(found, "Admitted")
            assert takes_quota(found)
            assert old is not None or not true(found, "Evicted")
        if plural != "workloads":
            return None
        if old is not None and takes_quota(old) and not takes_quota(new):
            assert not self.pods(), "quota is given back before the pods have ended"
        return webhook(old, new)

    @property
    def workload(self) -> dict[str, Any]:
        return self.server.get("workloads", "demo-workload")

    def kueue_acts(self) -> None:
        for body in self.kueue_acts_as.step(self.server.of("workloads")):
            self.server.put("workloads", body)

    def preempt(self, reason: str = "Preempted") -> None:
        self.server.put("workloads", self.kueue_acts_as.preempt(self.workload, reason))

    def activate(self, active: bool) -> None:
        changed = self.workload
        changed["spec"]["active"] = active
        self.server.put("workloads", changed)

    async def round(self) -> None:
        await self.settle()
        self.kueue_acts()
        await self.settle()
        self.nodes_act()
        await self.settle()


async def running(changes: dict[str, Any] | None = None, **kueue: Any) -> QueuedWorld:
    world = QueuedWorld(changes, **kueue)
    for _ in range(3):
        await world.round()
    assert world.status["phase"] == "Running"
    return world


async def test_a_queued_job_from_start_to_end() -> None:
    world = QueuedWorld()
    await world.settle()
    assert world.server.of("deployments") == []
    assert world.status["phase"] == "Queued"
    world.kueue_acts()
    await world.settle()
    template = world.server.get("deployments", "demo-taskapp")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"gpu": "h200"}
    for _ in range(2):
        await world.round()
    assert world.status["phase"] == "Running"
    assert condition(world.workload, "PodsReady")["status"] == "True"
    world.training_ends()
    for _ in range(2):
        await world.round()
    assert world.status["phase"] == "Complete"
    assert condition(world.workload, "Finished")["reason"] == "Succeeded"
    assert world.events() == ["Admitted", "Created", "Ready", "Completed"]
    assert await world.reconcile() == 0


async def test_a_preempted_job_comes_back() -> None:
    world = await running()
    uid = world.workload["metadata"]["uid"]
    world.preempt()
    await world.settle()
    assert world.status["phase"] == "Queued"
    assert true(world.workload, "QuotaReserved"), "pods are ending"
    world.kueue_acts_as.quota = 0
    for _ in range(2):
        await world.round()
    assert not world.pods()
    assert not true(world.workload, "QuotaReserved")
    assert "insufficient unused quota" in world.status["reason"]
    world.kueue_acts_as.quota = 3
    for _ in range(3):
        await world.round()
    assert world.status["phase"] == "Running"
    assert world.status["attempt"] == 1
    assert world.workload["metadata"]["uid"] == uid
    assert [event for event in world.events() if event in ("Admitted", "QuotaLost")] == [
        "Admitted", "QuotaLost", "Admitted",
    ]  # fmt: skip


async def test_what_kueue_wrote_meanwhile_is_not_overwritten() -> None:
    world = await running()
    world.preempt()
    await world.settle()
    world.server.finish_deletions()
    for key in [key for key in world.server.objects if key[0] == "pods"]:
        del world.server.objects[key]
    world.server.deliver(world.store)
    inactive = copy.deepcopy(world.workload)
    inactive["spec"]["active"] = False
    world.server.put("workloads", inactive)  # the watch has not shown it yet
    with pytest.raises(Outdated):
        await world.reconciler.reconcile(DEMO)
    assert true(world.workload, "QuotaReserved")
    await world.settle()
    assert not true(world.workload, "QuotaReserved")


async def test_a_workload_that_lost_its_labels_stops_no_pod() -> None:
    world = await running()
    bare = world.workload
    bare["metadata"]["labels"] = {}
    world.server.put("workloads", bare)
    world.store.remove("Workload", bare)
    await world.settle()
    assert world.status["phase"] == "Running"
    assert world.workload["metadata"]["labels"]["visionrl.dev/job"] == "demo"


async def test_a_deleted_workload_stops_the_pods() -> None:
    world = await running()
    del world.server.objects["workloads", "default", "demo-workload"]
    await world.settle()
    assert world.status["phase"] == "Queued"
    for _ in range(5):
        await world.round()
    assert world.status["phase"] == "Running"


async def test_the_priority_of_a_class_is_read() -> None:
    world = QueuedWorld({"queuePriorityClass": "high"})
    await world.settle()
    assert world.status["reason"] == "WorkloadPriorityClass high does not exist"
    result = await world.reconciler.reconcile(DEMO)
    assert result.again_after is not None
    assert result.again_after <= 30, "no watch reports priority classes"
    world.server.objects["workloadpriorityclasses", "", "high"] = {"metadata": {"name": "high"}, "value": 1000}
    await world.settle()
    assert world.workload["spec"]["priority"] == 1000


async def test_rights_that_are_missing_are_told_and_stop_nothing() -> None:
    world = QueuedWorld()
    world.server.fault = lambda method, path: failure(403, "Forbidden") if "resourceflavors" in path else None
    await world.settle()
    world.kueue_acts()
    await world.settle()
    assert world.status["reason"] == "ResourceFlavor h200 cannot be read"


async def test_a_trainer_that_somebodys_queue_holds_back_says_so() -> None:
    world = await running()
    world.training_ends(1)
    await world.settle()
    world.nodes_act()
    await world.settle()
    job = world.trainer()
    job["spec"]["suspend"] = True
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "default"
    world.server.put("jobs", job)
    world.server.objects.pop(("pods", "default", f"{job['metadata']['name']}-1"), None)
    await world.settle()
    assert world.condition("TrainerRunning")["message"].startswith("its Job is suspended by queue default")
    assert "suspended by queue default" in world.status["reason"]


async def test_killed_after_any_write_of_a_queued_life_the_end_is_the_same() -> None:
    world = QueuedWorld({"storage.runSize": "1Gi"})

    async def go_on(rounds: int) -> None:
        for _ in range(rounds):
            for act in (world.kueue_acts, world.nodes_act):
                await world.settle_whatever_is_killed()
                act()

    await go_on(4)
    assert world.status["phase"] == "Running"
    world.preempt()
    await go_on(5)
    assert world.status["phase"] == "Running"
    world.activate(False)
    await go_on(4)
    assert world.status["phase"] == "Queued"
    world.activate(True)
    await go_on(4)
    world.change(suspend=True)
    await go_on(3)
    assert world.status["phase"] == "Suspended"
    assert world.server.of("workloads") == []
    world.change(suspend=False)
    await go_on(5)
    assert (world.status["phase"], world.status["attempt"]) == ("Running", 3)
    world.training_ends()
    await go_on(3)
    assert world.status["phase"] == "Complete"
    assert true(world.workload, "Finished")
    assert world.kills > 50
