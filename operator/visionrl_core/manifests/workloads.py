"""Deployments and Services around a pod template."""

from __future__ import annotations

from visionrl.job import Component
from visionrl_core.manifests.common import PORT, Manifest, Owner, component_name, owned_manifest, selector


def deployment(owner: Owner, component: Component, template: Manifest, progress_deadline_seconds: int) -> Manifest:
    """One replica that is replaced, never doubled: beside an old pod that holds the last GPU, a new one would wait
    for ever."""
    return owned_manifest(
        "apps/v1",
        "Deployment",
        component_name(owner.name, component),
        owner,
        component,
        spec={
            "replicas": 1,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": progress_deadline_seconds,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector(owner.name, component)},
            "template": template,
        },
    )


def service(owner: Owner, component: Component) -> Manifest:
    return owned_manifest(
        "v1",
        "Service",
        component_name(owner.name, component),
        owner,
        component,
        spec={
            "selector": selector(owner.name, component),
            # The protocol is part of a port's key when it is applied: old API servers do not fill it in.
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": "http"}],
        },
    )
