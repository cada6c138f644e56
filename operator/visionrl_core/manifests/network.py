"""Who may talk to whom. Only enforced where the cluster's network plugin enforces NetworkPolicies.

There is no PodDisruptionBudget: with one replica per component it could only block every drain, and a job resumes
from its checkpoint on any node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visionrl.job import Job
from visionrl_core.manifests.common import (
    COMPONENT_LABEL,
    PORT,
    SUFFIXES,
    Manifest,
    Owner,
    owned_manifest,
    selector,
)

OPERATOR_LABELS = {"app.kubernetes.io/name": "visionrl-operator"}
_HTTP = [{"protocol": "TCP", "port": PORT}]
_DNS = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def network_policies(job: Job, owner: Owner, scraped_by: Sequence[Mapping[str, Any]] = ()) -> list[Manifest]:
    """``scraped_by``: NetworkPolicy peers that may read metrics."""
    policies = [_between_components(owner), _operator_reads_report(owner)]
    policies += [_metrics(owner, scraped_by)] if scraped_by else []
    return [*policies, _hub(owner)] if model_comes_from_hub(job) else policies


def model_comes_from_hub(job: Job) -> bool:
    base = job.spec.model.base
    return base != "tiny" and not base.startswith(("/", "."))


def _between_components(owner: Owner) -> Manifest:
    """The job's components reach each other and the cluster's DNS; everything else is closed."""
    components = [{"podSelector": {"matchLabels": selector(owner.name)}}]
    return owned_manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        f"{owner.name}-parts",
        owner,
        spec={
            "podSelector": {"matchLabels": selector(owner.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": components, "ports": _HTTP}],
            "egress": [{"to": components, "ports": _HTTP}, {"ports": _DNS}],
        },
    )


def _operator_reads_report(owner: Owner) -> Manifest:
    """The operator, in whichever namespace it runs, reads the trainer's ``/status``."""
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR_LABELS}}
    return owned_manifest(
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


def _metrics(owner: Owner, peers: Sequence[Mapping[str, Any]]) -> Manifest:
    """Whoever may reach the port may ask for metrics without a key, and for nothing else."""
    measured = {"key": COMPONENT_LABEL, "operator": "In", "values": [SUFFIXES["inference"], SUFFIXES["trainer"]]}
    return owned_manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        f"{owner.name}-metrics",
        owner,
        spec={
            "podSelector": {"matchLabels": selector(owner.name), "matchExpressions": [measured]},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [dict(peer) for peer in peers], "ports": _HTTP}],
        },
    )


def _hub(owner: Owner) -> Manifest:
    """Server and trainer download the base model."""
    downloads = {"key": COMPONENT_LABEL, "operator": "In", "values": [SUFFIXES["inference"], SUFFIXES["trainer"]]}
    return owned_manifest(
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
