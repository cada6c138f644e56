"""A job, an API server in memory, and the operator that runs against it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.support.fake_api import FakeApi, client
from tests.support.jobs import document
from visionrl.status import TrainerReport
from visionrl_core.container_images import RELEASED
from visionrl_core.kinds import Kueue
from visionrl_core.manifests.common import Owner
from visionrl_core.manifests.storage import claim_of
from visionrl_core.observed import ClusterRules
from visionrl_operator.metrics import Metrics
from visionrl_operator.observe import TrainerPod
from visionrl_operator.reconciler import Reconciler
from visionrl_operator.store import Key, Store

DEMO = Key("default", "demo")
FIRST_UID = "uid-1001"
CLAIM = claim_of(Owner("demo", "default", FIRST_UID))
"""The claim that is made for the first object that an API server gets."""


class NoProbes:
    """Reports as the test says."""

    def __init__(self) -> None:
        self.current: TrainerReport | None = None
        self.followed: TrainerPod | None = None
        self.silent = timedelta(0)

    def follow(self, key: Key, pod: TrainerPod | None) -> None:
        self.followed = pod

    def report(self, key: Key) -> TrainerReport | None:
        return self.current

    def idle(self, key: Key) -> timedelta:
        return self.silent

    def stop(self, key: Key) -> None:
        self.followed = None


class World:
    """An API server, and the operator that runs against it; ``restart`` is what a killed pod's successor knows."""

    def __init__(self, changes: dict[str, Any] | None = None, kueue: Kueue | None = None) -> None:
        self.server, self.kueue, self.images = FakeApi(), kueue, RELEASED
        self.probes = NoProbes()
        self.seconds = 1000.0
        """What the operator's clock shows; it stands still."""
        found = document(changes)
        found["metadata"]["namespace"] = "default"
        self.server.put("visionrljobs", found)
        self.restart()

    def restart(self) -> None:
        self.store = Store()
        self.server.lives = None
        api = client(self.server)
        probes: Any = self.probes
        self.reconciler = Reconciler(
            api, self.store, probes, Metrics(), ClusterRules(self.images), self.kueue, lambda: self.seconds
        )
        self.server.deliver(self.store)

    async def reconcile(self) -> int:
        """One pass; how many writes it took."""
        before = len(self.server.writes)
        self.server.deliver(self.store)
        await self.reconciler.reconcile(DEMO)
        return len(self.server.writes) - before

    async def settle(self, passes: int = 20) -> None:
        for _ in range(passes):
            if await self.reconcile() == 0:
                return
        raise AssertionError("never done")

    @property
    def job(self) -> dict[str, Any]:
        return self.server.get("visionrljobs", "demo")

    @property
    def status(self) -> dict[str, Any]:
        return self.job["status"]

    def condition(self, type_: str) -> dict[str, Any]:
        return next(condition for condition in self.status["conditions"] if condition["type"] == type_)

    def events(self) -> list[str]:
        return [event["reason"] for event in self.server.of("events")]

    def change(self, **spec: Any) -> None:
        job = self.job
        job["spec"] |= spec
        job["metadata"]["generation"] += 1
        self.server.put("visionrljobs", job)

    # --- kubelet and controllers

    def run_pod(self, component: str, owner_uid: str, state: dict[str, Any] | None = None, **metadata: Any) -> str:
        name = f"demo-{component}-{owner_uid}"
        labels = {"visionrl.dev/job": "demo", "visionrl.dev/component": component}
        annotations = self.template(component)["metadata"]["annotations"]
        running = state is None
        status = state or {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {"name": component, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}}
            ],
        }
        if not running:
            status = {"phase": "Failed", "containerStatuses": [{"name": component, "restartCount": 0, "state": state}]}
        existing = self.server.objects.get(("pods", "default", name), {"metadata": {}})["metadata"]
        pod = {
            "metadata": {
                **existing,
                "name": name,
                "namespace": "default",
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [{"uid": owner_uid, "controller": True}],
                **metadata,
            },
            "spec": {"nodeName": "node1"},
            "status": status,
        }
        self.server.put("pods", pod)
        return name

    def template(self, component: str) -> dict[str, Any]:
        """What the pods of a component are made from now."""
        workload = self.trainer() if component == "trainer" else self.server.get("deployments", f"demo-{component}")
        found: dict[str, Any] = workload["spec"]["template"]
        return found

    def servers_ready(self) -> None:
        for component in ("taskapp", "inference"):
            self.run_pod(component, f"rs-{component}")

    def trainer(self) -> dict[str, Any]:
        [job] = [job for job in self.server.of("jobs") if "deletionTimestamp" not in job["metadata"]]
        return job

    def trainer_runs(self) -> None:
        self.run_pod("trainer", self.trainer()["metadata"]["uid"])

    def trainer_ends(self, code: int, reason: str = "Error", message: str = "") -> None:
        job = self.trainer()
        started = "2026-01-01T00:00:01Z"
        ended = {"terminated": {"exitCode": code, "reason": reason, "startedAt": started, "message": message}}
        self.run_pod("trainer", job["metadata"]["uid"], ended)
        kind = "Failed" if code else "Complete"
        job["status"] = {"conditions": [{"type": kind, "status": "True", "message": "has ended"}]}
        self.server.put("jobs", job)


async def running(changes: dict[str, Any] | None = None) -> World:
    world = World({"failurePolicy.backoffSeconds": 0.0, **(changes or {})})
    await world.settle()
    world.servers_ready()
    await world.settle()
    world.trainer_runs()
    await world.settle()
    return world
