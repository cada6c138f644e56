"""A release of the chart on a cluster."""

from __future__ import annotations

import json
import uuid
from typing import Any

from .kube import cluster as kube_cluster
from .kube.host import KubeError
from .project_images import REPOSITORY, chart_values

CHART = REPOSITORY / "charts" / "visionrl"
CRD = "visionrljobs.visionrl.dev"


class Release:
    """One release in a namespace of its own."""

    def __init__(self, kube: kube_cluster.Running, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace
        self.name = f"r{uuid.uuid4().hex[:6]}"
        self.operator = f"{self.name}-visionrl-operator"
        self.selector = f"app.kubernetes.io/name=visionrl-operator,app.kubernetes.io/instance={self.name}"

    def values(self, *settings: str) -> list[str]:
        images = [
            word for name, value in chart_values().items() for word in ("--set-json", f"{name}={json.dumps(value)}")
        ]
        return [*images, *(word for setting in settings for word in ("--set", setting))]

    def deploy(self, *settings: str) -> str:
        """Install or upgrade, until the operator is ready; what helm says.

        --take-ownership: the definition stays after a release, this one may find another's.
        """
        words = ["--install", "--wait", "--timeout", "600s", "--take-ownership", "--namespace", self.namespace]
        try:
            return self.kube.helm("upgrade", self.name, str(CHART), *words, *self.values(*settings))
        except KubeError as error:
            pods = self.kube.kubectl("describe", "pods", "--namespace", self.namespace)
            logs = ["logs", f"deployment/{self.operator}", "--namespace", self.namespace, "--tail=50"]
            raise AssertionError(f"{error}\n{pods}\n{self._try(*logs)}") from None

    def _try(self, *arguments: str) -> str:
        try:
            return self.kube.kubectl(*arguments)
        except KubeError as error:
            return str(error)

    def kill(self) -> None:
        """End the operator at once, as the loss of its node would."""
        words = ("--namespace", self.namespace, "--selector", self.selector, "--grace-period=0", "--force")
        self.kube.kubectl("delete", "pods", *words)

    def pods(self) -> set[str]:
        """The names of the operator's pods that are not about to go."""
        pods = self.kube.kubectl.get("pods", "--namespace", self.namespace, "--selector", self.selector)["items"]
        return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}

    def leader(self) -> str:
        """The name of the pod that leads; empty where none does, as between one that went and the next."""
        lease = self.kube.kubectl.get("lease", self.operator, "--namespace", self.namespace)
        pod, _, _process = lease["spec"]["holderIdentity"].partition("_")
        return pod

    def uninstall(self) -> None:
        self.kube.helm("uninstall", self.name, "--namespace", self.namespace, "--ignore-not-found", "--wait")

    def deployment(self) -> dict[str, Any]:
        return self.kube.kubectl.get("deployment", self.operator, "--namespace", self.namespace)

    def may(self, verb: str, what: str, namespace: str, *options: str) -> bool:
        """Whether the API server lets the operator's account do that."""
        account = f"--as=system:serviceaccount:{self.namespace}:{self.operator}"
        words = ["auth", "can-i", "--quiet", verb, what, "--namespace", namespace, account, *options]
        return self.kube.kubectl.succeeds(*words)
