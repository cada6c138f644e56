"""What the operator's cluster tests look at and pretend: jobs, their objects, and pods that no node runs."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.jobs import document
from tests.support.operator_process import Operator
from tests.support.ports import free_port
from visionrl.status import TrainerReport

from .kube import cluster as kube_cluster
from .kube.host import KubeError, wait_until

LOSES_ITS_RESULT = "ValidWithWarnings"
"""The event of the jobs of these tests: their run folder is ephemeral."""

FIRST_OBJECTS = {
    "secret/demo-key",
    "configmap/demo-config",
    "networkpolicy.networking.k8s.io/demo-parts",
    "networkpolicy.networking.k8s.io/demo-report",
    "service/demo-taskapp",
    "service/demo-inference",
    "service/demo-trainer",
    "deployment.apps/demo-taskapp",
    "deployment.apps/demo-inference",
}
KINDS = "secret,configmap,networkpolicy,service,deployment,job,pvc"
OURS = "app.kubernetes.io/managed-by=visionrl-operator"


class World:
    """A namespace with jobs, pods and operators."""

    def __init__(self, kube: kube_cluster.Running, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace

    def operator(self, *arguments: str, election: bool = False) -> AbstractContextManager[Operator]:
        arguments = ("--namespace", self.namespace, *arguments, *(() if election else ("--no-leader-election",)))
        return Operator.start(self.kube.kubeconfig, free_port(), arguments, POD_NAMESPACE=self.namespace)

    def kubectl(self, *arguments: str) -> str:
        return self.kube.kubectl(*arguments, "-n", self.namespace)

    # --- jobs

    def apply(self, changes: dict[str, Any] | None = None, name: str = "demo") -> None:
        found = document({"storage.ephemeral": True, **(changes or {})})
        found["metadata"]["name"] = name
        self.kube.kubectl.apply(found, namespace=self.namespace)

    def patch(self, spec: dict[str, Any]) -> None:
        self.kubectl("patch", "vrl", "demo", "--type=merge", "-p", json.dumps({"spec": spec}))

    def job(self, name: str = "demo") -> dict[str, Any]:
        return self.kube.kubectl.get("vrl", name, "-n", self.namespace)

    def status(self, name: str = "demo") -> dict[str, Any]:
        return self.job(name).get("status", {})

    def statuses(self) -> dict[str, Any]:
        """Of each job of the namespace, by its name."""
        jobs = self.kube.kubectl.get("vrl", "-n", self.namespace)["items"]
        return {job["metadata"]["name"]: job.get("status", {}) for job in jobs}

    def condition(self, type_: str, name: str = "demo") -> dict[str, Any]:
        found = [condition for condition in self.status(name).get("conditions", []) if condition["type"] == type_]
        return found[0] if found else {"status": "Unknown", "reason": "", "message": ""}

    def events(self) -> list[str]:
        events = self.kube.kubectl.get("events", "-n", self.namespace)["items"]
        mine = [event for event in events if event["involvedObject"]["kind"] == "VisionRLJob"]
        return [event["reason"] for event in sorted(mine, key=lambda event: int(event["metadata"]["resourceVersion"]))]

    # --- objects

    def objects(self, name: str = "demo") -> set[str]:
        selector = f"{OURS},visionrl.dev/job={name}"
        return set(self.kubectl("get", KINDS, "-l", selector, "-o", "name").split())

    def wait_for_objects(self, expected: set[str] = FIRST_OBJECTS) -> None:
        self.wait(lambda: self.objects() == expected, f"the objects {sorted(expected)}")

    def wait(self, holds: Any, what: str, limit_s: float = 60) -> None:
        try:
            wait_until(holds, what, limit_s)
        except KubeError as error:
            raise AssertionError(f"{error}; {json.dumps(self.statuses())}") from None

    # --- what a node would report

    def pod_of(self, component: str) -> str:
        selector = f"visionrl.dev/job=demo,visionrl.dev/component={component}"
        pods = self.kube.kubectl.get("pods", "-l", selector, "-n", self.namespace)["items"]
        live = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return str(live[-1]["metadata"]["name"]) if live else ""

    def pod_status(self, component: str, status: dict[str, Any]) -> None:
        self.wait(lambda: self.pod_of(component), f"the {component}'s pod")
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", self.pod_of(component), "--subresource=status", "--type=merge", "-p", patch)

    def pod_runs(self, component: str, address: str = "127.0.0.1") -> None:
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        ready = {"type": "Ready", "status": "True"}
        self.pod_status(
            component,
            {
                "phase": "Running",
                "podIP": address,
                "conditions": [ready],
                "containerStatuses": [container(component, state, ready=True)],
            },
        )

    def pod_ends(self, component: str, code: int, reason: str) -> None:
        started, finished = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z"
        ended = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": finished}
        phase = "Failed" if code else "Succeeded"
        statuses = [container(component, {"terminated": ended}, ready=False)]
        self.pod_status(component, {"phase": phase, "conditions": [], "containerStatuses": statuses})


def container(name: str, state: dict[str, Any], ready: bool) -> dict[str, Any]:
    return {"name": name, "ready": ready, "restartCount": 0, "image": "x", "imageID": "x", "state": state}


class FakeTrainer:
    """Serves a report on a loopback address of its own, to who has the key."""

    def __init__(self, world: World, address: str) -> None:
        self.world, self.address = world, address
        self.report = TrainerReport(phase="Starting")
        self.refused = 0

    def __enter__(self) -> FakeTrainer:
        secret = self.world.kube.kubectl.get("secret", "demo-key", "-n", self.world.namespace)
        key = base64.b64decode(secret["data"]["api-key"]).decode()
        trainer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = self.headers["Authorization"] == f"Bearer {key}"
                trainer.refused += not allowed
                self.send_response(200 if allowed else 401)
                self.end_headers()
                if allowed:
                    self.wfile.write(trainer.report.model_dump_json(by_alias=True).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((self.address, 8000), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
