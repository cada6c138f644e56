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
    components = {"matchLabels": selector(owner.name)}
    peers = [{"podSelector": components}]
    return network_policy(
        owner,
        "parts",
        components,
        ingress=[{"from": peers, "ports": _HTTP}],
        egress=[{"to": peers, "ports": _HTTP}, {"ports": _DNS}],
    )


def _operator_reads_report(owner: Owner) -> Manifest:
    """The operator, in whichever namespace it runs, reads the trainer's ``/status``."""
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR_LABELS}}
    trainer = {"matchLabels": selector(owner.name, "trainer")}
    return network_policy(owner, "report", trainer, ingress=[{"from": [operator], "ports": _HTTP}])


def _metrics(owner: Owner, peers: Sequence[Mapping[str, Any]]) -> Manifest:
    """Whoever may reach the port may ask for metrics without a key, and for nothing else."""
    ingress = [{"from": [dict(peer) for peer in peers], "ports": _HTTP}]
    return network_policy(owner, "metrics", _inference_and_trainer(owner), ingress=ingress)


def _hub(owner: Owner) -> Manifest:
    """Server and trainer download the base model."""
    https = [{"protocol": "TCP", "port": 443}]
    return network_policy(owner, "hub", _inference_and_trainer(owner), egress=[{"ports": https}])


def _inference_and_trainer(owner: Owner) -> Manifest:
    """Selects their pods."""
    either = {"key": COMPONENT_LABEL, "operator": "In", "values": [SUFFIXES["inference"], SUFFIXES["trainer"]]}
    return {"matchLabels": selector(owner.name), "matchExpressions": [either]}


def network_policy(owner: Owner, name: str, pods: Manifest, **rules: list[Manifest]) -> Manifest:
    """The NetworkPolicy ``JOB-name`` of the selected pods: ``ingress``, ``egress`` or both."""
    types = [direction.capitalize() for direction in rules]
    spec = {"podSelector": pods, "policyTypes": types, **rules}
    return owned_manifest("networking.k8s.io/v1", "NetworkPolicy", f"{owner.name}-{name}", owner, spec=spec)
