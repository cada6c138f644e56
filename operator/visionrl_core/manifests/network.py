"""Who may talk to whom. Only enforced where the cluster's network plugin enforces NetworkPolicies.

There is no PodDisruptionBudget: with one replica a part it could only forbid every drain, and a job goes on from its
checkpoint wherever its pods are put.
"""

from __future__ import annotations

from visionrl.job import Job
from visionrl_core.manifests.common import (
    COMPONENT_LABEL,
    PORT,
    SUFFIXES,
    Manifest,
    Owner,
    manifest,
    selector,
)

OPERATOR_LABELS = {"app.kubernetes.io/name": "visionrl-operator"}
_HTTP = [{"protocol": "TCP", "port": PORT}]
_DNS = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def network_policies(job: Job, owner: Owner) -> list[Manifest]:
    policies = [_between_parts(owner), _operator_reads_report(owner)]
    return [*policies, _hub(owner)] if model_comes_from_hub(job) else policies


def model_comes_from_hub(job: Job) -> bool:
    base = job.spec.model.base
    return base != "tiny" and not base.startswith(("/", "."))


def _between_parts(owner: Owner) -> Manifest:
    """The job's parts reach each other and the cluster's DNS; everything else is closed."""
    parts = [{"podSelector": {"matchLabels": selector(owner.name)}}]
    return manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        f"{owner.name}-parts",
        owner,
        spec={
            "podSelector": {"matchLabels": selector(owner.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": parts, "ports": _HTTP}],
            "egress": [{"to": parts, "ports": _HTTP}, {"ports": _DNS}],
        },
    )


def _operator_reads_report(owner: Owner) -> Manifest:
    """The operator, in whichever namespace it runs, reads the trainer's ``/status``."""
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR_LABELS}}
    return manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        f"{owner.name}-report",
        owner,
        spec={
            "podSelector": {"matchLabels": selector(owner.name, "trainer")},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [operator], "ports": _HTTP}],
        },
    )


def _hub(owner: Owner) -> Manifest:
    """Server and trainer download the base model."""
    downloads = {"key": COMPONENT_LABEL, "operator": "In", "values": [SUFFIXES["inference"], SUFFIXES["trainer"]]}
    return manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        f"{owner.name}-hub",
        owner,
        spec={
            "podSelector": {"matchLabels": selector(owner.name), "matchExpressions": [downloads]},
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "TCP", "port": 443}]}],
        },
    )
