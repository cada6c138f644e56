"""Kueue on the test cluster: definitions of its objects, as small as they can be, and the fake that acts on them.

The published definitions are not used: they are half a megabyte, and need Kueue itself to convert between versions.
What the operator writes was compared with them by hand (Kueue 0.19, both versions).
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from tests.support.fake_kueue import FakeKueue
from visionrl_core.kinds import Kind, Kueue

from .kube.host import KubeError
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
        for body in self.rules.step(self.workloads()):
            self._write(body)

    def preempt(self) -> None:
        [workload] = self.workloads()
        self._write(self.rules.preempt(workload))

    def _write(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(KubeError):  # the operator wrote meanwhile: the next time
            kubectl = self.world.kube.kubectl
            kubectl("replace", "--subresource=status", "-n", self.world.namespace, "-f", "-", stdin=json.dumps(body))
