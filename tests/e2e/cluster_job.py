"""One job on a cluster, as its user sees it: through kubectl."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube.host import KubeError, run, wait_until
from visionrl.adapters import Manifest, verified_manifest
from visionrl_core.crd import SHORT_NAME

PATIENCE_SECONDS = 900.0
"""How long one condition may take before a test gives up: several models may be loading on two cores."""

RUN_FOLDER = "/var/lib/visionrl/run"


@dataclass
class ClusterJob:
    """One VisionRLJob."""

    kube: kube_cluster.Running
    namespace: str
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.kube.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def apply(self, document: dict[str, Any]) -> None:
        document["metadata"]["name"] = self.name
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def patch(self, spec: dict[str, Any]) -> None:
        self.kubectl("patch", SHORT_NAME, self.name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def delete(self) -> None:
        self.kubectl("delete", SHORT_NAME, self.name, "--wait=false")

    def row(self) -> str:
        """What ``kubectl get vrl`` shows."""
        return self.kubectl("get", SHORT_NAME, self.name, "--no-headers")

    # --- its status

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", SHORT_NAME, self.name, "-o", "json"))
        return found.get("status", {})

    @property
    def phase(self) -> str:
        return str(self.status().get("phase", ""))

    @property
    def reason(self) -> str:
        return str(self.status().get("reason", ""))

    @property
    def attempt(self) -> int:
        return int(self.status().get("attempt", 0))

    @property
    def iteration(self) -> int:
        """As the status tells: some seconds late."""
        return int(self.status().get("progress", {}).get("iteration", 0))

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status().get("conditions", []) if c["type"] == kind), {})

    # --- its pods

    def pods(self, component: str | None = None) -> list[dict[str, Any]]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "pods", "-l", self._labels(component), "-o", "json"))
        return list(found["items"])

    def end_of_a_deleted_trainer(self) -> dict[str, Any]:
        """Delete the job and return how its trainer's container ended, of which Kubernetes would keep nothing."""
        [pod] = self.pods("trainer")
        name = pod["metadata"]["name"]
        self._keep(name, ["visionrl.dev/test"])
        try:
            self.delete()

            def end() -> dict[str, Any]:
                [container] = json.loads(self.kubectl("get", "pod", name, "-o", "json"))["status"]["containerStatuses"]
                return dict(container["state"].get("terminated", {}))

            wait_until(lambda: bool(end()), f"{self.name}: the trainer's end", PATIENCE_SECONDS, 1)
            return end()
        finally:
            self._keep(name, [])

    def _keep(self, pod: str, finalizers: list[str]) -> None:
        self.kubectl("patch", "pod", pod, "--type=merge", "-p", json.dumps({"metadata": {"finalizers": finalizers}}))

    def children(self) -> dict[str, tuple[str, int, int]]:
        """What was made for the job: uid, generation, and restarts where it is a pod."""
        kinds = "pods,deployments,jobs,services,configmaps,secrets,networkpolicies,persistentvolumeclaims"
        listed = json.loads(self.kubectl("get", kinds, "-l", self._labels(), "-o", "json"))["items"]
        return {
            f"{item['kind']}/{item['metadata']['name']}": (
                item["metadata"]["uid"],
                item["metadata"].get("generation", 0),
                sum(status["restartCount"] for status in item.get("status", {}).get("containerStatuses", ())),
            )
            for item in listed
        }

    @property
    def trainer_runs(self) -> bool:
        """Whether its container was started; the process in it may still be loading."""
        statuses = [status for pod in self.pods("trainer") for status in pod["status"].get("containerStatuses", ())]
        return any("running" in status["state"] for status in statuses)

    def logs(self, component: str) -> str:
        return self.kubectl("logs", "-l", self._labels(component), "--tail=-1")

    def in_trainer(self, *command: str) -> str:
        [trainer] = self.pods("trainer")
        return self.kubectl("exec", trainer["metadata"]["name"], "--container=trainer", "--", *command)

    def signal_trainer(self, signal: Literal["TERM", "STOP", "CONT"]) -> None:
        """From inside, of which Kubernetes knows nothing."""
        find = "grep --files-with-matches [v]isionrl_trainer /proc/[0-9]*/cmdline | cut -d/ -f3"
        self.in_trainer("sh", "-c", f"kill -{signal} $({find})")

    def iterations_kept(self) -> list[int]:
        """Those that the run folder tells of."""
        lines = self.in_trainer("cat", f"{RUN_FOLDER}/metrics.jsonl").splitlines()
        return [json.loads(line)["iteration"] for line in lines]

    def iterations_logged(self) -> list[int]:
        """Those that the current attempt's trainer went through."""
        try:
            log = self.kubectl("logs", f"job/{self.name}-trainer-{self.attempt}", "--tail=-1")
        except KubeError:  # no such pod yet, or no container in it
            return []
        return [int(number) for number in re.findall(r"iteration (\d+)/", log)]

    # --- what it trained

    def fetch(self, folder: Path) -> Manifest:
        self.visionrl("fetch", self.name, "--namespace", self.namespace, "--output", str(folder))
        return verified_manifest(folder)

    def visionrl(self, *words: str) -> str:
        """The command, as a person with this kubeconfig."""
        environment = self.kube.kubectl.environment()
        environment["PATH"] = f"{self.kube.kubectl.program.parent}:{environment['PATH']}"
        return run([Path(sys.executable).with_name("visionrl"), *words], env=environment)

    # --- waiting

    def wait(self, what: str, condition: Callable[[], bool], fails: bool = False) -> None:
        """Wait until it holds; a job that fails meanwhile ends the wait, unless that is waited for."""

        def met() -> bool:
            if not fails and self.phase == "Failed":
                raise KubeError(f"the job failed while waiting for {what}")
            return condition()

        try:
            wait_until(met, f"{self.name}: {what}", PATIENCE_SECONDS, 1)
        except KubeError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def wait_for_phase(self, phase: str) -> None:
        self.wait(f"phase {phase}", lambda: self.phase == phase, fails=phase == "Failed")

    def wait_for_iteration(self, number: int) -> None:
        self.wait(f"iteration {number}", lambda: self.iteration >= number)

    def wait_to_go_on(self, after: int) -> None:
        """Wait until a new attempt has been through an iteration; it must not be one of those done before."""
        self.wait("training to go on", lambda: bool(self.iterations_logged()))
        assert min(self.iterations_logged()) > after

    def wait_gone(self) -> None:
        """Wait until nothing that was made for the job is left, of any kind that the API server lists."""
        kinds = self.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        kinds = [kind for kind in kinds if not kind.startswith("events")]  # Kubernetes lets them go after an hour

        def gone() -> bool:
            return not self.kubectl("get", ",".join(kinds), "-l", self._labels(), "-o", "name").split()

        wait_until(gone, f"{self.name}: everything gone", PATIENCE_SECONDS, 1)

    def story(self) -> str:
        """What a person would look at."""
        words = [
            ("get", SHORT_NAME, self.name, "-o", "yaml"),
            ("get", "pods,jobs,deployments", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            *(("logs", "-l", self._labels(part), "--tail=25") for part in ("taskapp", "inference", "trainer")),
        ]
        told = []
        for arguments in words:
            done = subprocess.run(
                [self.kube.kubectl.program, *arguments, "--namespace", self.namespace],
                env=self.kube.kubectl.environment(),
                capture_output=True,
                text=True,
            )
            told.append(f"$ kubectl {' '.join(arguments)}\n{done.stdout[-6000:]}{done.stderr[-1000:]}")
        return "\n".join(told)

    def _labels(self, component: str | None = None) -> str:
        return f"visionrl.dev/job={self.name}" + (f",visionrl.dev/component={component}" if component else "")
