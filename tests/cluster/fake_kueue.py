"""Kueue on the test cluster: definitions of its objects, as small as they can be, and the fake that acts on them.

The published definitions are not used: they are half a megabyte, and need Kueue itself to convert between versions.
What the operator writes was compared with them by hand (Kueue 0.19, both versions).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.support.fake_kueue import FakeKueue
from visionrl_core.kinds import Kind, Kueue

from .kube.host import KubeError, wait_until
from .operator_world import World

KUEUE = Kueue("kueue.x-k8s.io/v1beta2")
ANYTHING: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CONDITIONS: dict[str, Any] = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "reason": {"type": "string", "minLength": 1, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "type": {"type": "string"},
        },
    },
}
WORKLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "active": {"type": "boolean", "default": True},
                "queueName": {"type": "string"},
                "priority": {"type": "integer"},
                "priorityClassRef": ANYTHING,
                "podSets": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 8,
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "required": ["name", "count", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "count": {"type": "integer"},
                            "template": ANYTHING,
                        },
                    },
                },
            },
        },
        "status": {
            "type": "object",
            "properties": {
                "admission": ANYTHING,
                "conditions": CONDITIONS,
                "requeueState": ANYTHING,
                "admissionChecks": {"type": "array", "items": ANYTHING},
            },
        },
    },
}
FLAVOR: dict[str, Any] = {"type": "object", "properties": {"spec": ANYTHING}}
PRIORITY_CLASS: dict[str, Any] = {"type": "object", "properties": {"value": {"type": "integer"}}}


def definition(kind: Kind, schema: dict[str, Any], scope: str) -> dict[str, Any]:
    version = {"served": True, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": scope,
            "names": {"kind": kind.name, "plural": kind.plural, "singular": kind.name.lower()},
            "versions": [
                {"name": "v1beta1", "storage": False, **version},
                {"name": "v1beta2", "storage": True, **version},
            ],
        },
    }


DEFINITIONS = (
    definition(KUEUE.workload, WORKLOAD, "Namespaced"),
    definition(KUEUE.flavor, FLAVOR, "Cluster"),
    definition(KUEUE.priority_class, PRIORITY_CLASS, "Cluster"),
)


class KueueActs:
    """The fake, as a client of the API server. It acts when it is called."""

    def __init__(self, world: World, quota: int) -> None:
        self.world, self.rules = world, FakeKueue(quota=quota)

    def install(self) -> None:
        kubectl = self.world.kube.kubectl
        kubectl.apply(*DEFINITIONS)
        for each in DEFINITIONS:
            kubectl("wait", "--for=condition=Established", f"crd/{each['metadata']['name']}", "--timeout=60s")
        flavor = {
            "apiVersion": KUEUE.api_version,
            "kind": KUEUE.flavor.name,
            "metadata": {"name": self.rules.flavor},
            "spec": {"nodeLabels": {"gpu": "h200"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        }
        kubectl.apply(flavor)

    def remove(self) -> None:
        for each in DEFINITIONS:
            self.world.kube.kubectl("delete", "crd", each["metadata"]["name"], "--ignore-not-found", "--wait=false")

    def workloads(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.world.kube.kubectl.get("workloads", "-n", self.world.namespace)["items"]
        return found

    def __call__(self) -> None:
        self._act(self.rules.step)

    def preempt(self) -> None:
        self._act(lambda workloads: [self.rules.preempt(workload) for workload in workloads])

    def _act(self, step: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """One step; again with what there is by then, where the operator wrote meanwhile."""
        wait_until(lambda: all(self._write(body) for body in step(self.workloads())), "Kueue's writes", timeout_s=60)

    def _write(self, body: dict[str, Any]) -> bool:
        """Whether it was still the one that was read."""
        command = ("replace", "--subresource=status", "-n", self.world.namespace, "-f", "-")
        try:
            self.world.kube.kubectl(*command, stdin=json.dumps(body))
        except KubeError as error:
            if not any(reason in str(error) for reason in ("(Conflict)", "(NotFound)")):
                raise
            return False
        return True
