"""An operator, installed with helm, and jobs that it looks after."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.cluster import project_images
from tests.cluster.conftest import kube, namespace  # noqa: F401  (fixtures of these tests too)
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube.host import KubeError, wait_until
from tests.cluster.release import Release
from visionrl_operator.crd import SHORT_NAME

CONFIGS = project_images.REPOSITORY / "configs"
PATIENCE_SECONDS = 1500.0
"""How long one condition may take before a test gives up: several models may be loading on two cores."""


def on_cpu(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A job file for the cluster under test: the images that were built for it, requests that fit its node."""
    spec = document["spec"]
    document["metadata"]["name"] = name
    for part, image, memory in (
        ("taskApp", "taskapp", "1Gi"),
        ("inference", "inference", "5Gi"),
        ("trainer", "trainer", "4Gi"),
    ):
        resources = {"cpu": "100m", "memory": memory}
        spec[part] = {**spec.get(part, {}), "image": project_images.tag(image), "resources": resources}
    return document


@dataclass
class ClusterJob:
    """One VisionRLJob on the cluster."""

    kube: kube_cluster.Running
    namespace: str
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.kube.kubectl(*arguments, "--namespace", self.namespace, stdin=stdin)

    def apply(self, document: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def patch(self, spec: dict[str, Any]) -> None:
        self.kubectl("patch", SHORT_NAME, self.name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", SHORT_NAME, self.name, "-o", "json"))
        return found.get("status", {})

    @property
    def phase(self) -> str:
        return str(self.status().get("phase", ""))

    @property
    def iteration(self) -> int:
        return int(self.status().get("progress", {}).get("iteration", 0))

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status().get("conditions", []) if c["type"] == kind), {})

    def pods(self, component: str | None = None) -> list[dict[str, Any]]:
        selector = f"visionrl.dev/job={self.name}"
        selector += f",app.kubernetes.io/component={component}" if component else ""
        found: dict[str, Any] = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))
        return list(found["items"])

    def logs(self, component: str) -> str:
        selector = f"visionrl.dev/job={self.name},app.kubernetes.io/component={component}"
        return self.kubectl("logs", "-l", selector, "--tail=-1")

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

    def wait_gone(self) -> None:
        """Wait until nothing that was made for the job is left."""
        kinds = "deployments,jobs,pods,services,configmaps,secrets,networkpolicies,persistentvolumeclaims"

        def gone() -> bool:
            return not self.kubectl("get", kinds, "-l", f"visionrl.dev/job={self.name}", "-o", "name").split()

        wait_until(gone, f"{self.name}: everything gone", PATIENCE_SECONDS, 1)

    def story(self) -> str:
        """What a person would look at."""
        words = [
            ("get", SHORT_NAME, self.name, "-o", "yaml"),
            ("get", "pods,jobs,deployments", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            *(
                ("logs", "-l", f"app.kubernetes.io/component={part}", "--tail=25")
                for part in ("taskapp", "inference", "trainer")
            ),
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


@pytest.fixture(scope="session")
def images(kube: kube_cluster.Running) -> None:  # noqa: F811
    project_images.ensure(kube, *project_images.PARTS)


@pytest.fixture
def release(kube: kube_cluster.Running, namespace: str, images: None) -> Iterator[Release]:  # noqa: F811
    """An operator for the test's namespace."""
    made = Release(kube, namespace, project_images.tag("operator"))
    made.deploy("scope=namespaced")
    yield made
    made.uninstall()


@pytest.fixture
def job(kube: kube_cluster.Running, namespace: str) -> Callable[[str], ClusterJob]:  # noqa: F811
    return lambda name: ClusterJob(kube, namespace, name)


def config(file: str) -> dict[str, Any]:
    """A job file of the project's."""
    path: Path = CONFIGS / file
    found: dict[str, Any] = YAML(typ="safe").load(path)
    return found
