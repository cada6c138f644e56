"""Who may talk to whom. Only enforced where the cluster's network plugin enforces NetworkPolicies.

There is no PodDisruptionBudget: with one replica per component it could only block every drain, and a job resumes
from its checkpoint on any node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from visionrl.checks import runs_task_app
from visionrl.job import Job, Otlp, Tracking
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
    policies += [] if runs_task_app(job.spec) else _task_app_elsewhere(job, owner)
    policies += [_metrics(owner, scraped_by)] if scraped_by else []
    policies += [_hub(owner)] if model_comes_from_hub(job) else []
    policies += [_trackers(owner, ports)] if (ports := tracker_ports(job.spec.tracking)) else []
    return [*policies, _spans(owner, otlp)] if (otlp := job.spec.tracking.otlp) else policies


def tracker_ports(tracking: Tracking) -> set[int]:
    """Where the trackers listen that are not in the run folder."""
    mlflow, wandb, trackio = tracking.mlflow, tracking.wandb, tracking.trackio
    ports = {443} if (wandb and wandb.mode == "online") or (trackio and trackio.space_id) else set()
    server = mlflow.tracking_uri if mlflow else None
    return ports | ({_port(server)} if server and server.startswith(("http://", "https://")) else set())


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
    return network_policy(owner, "hub", _inference_and_trainer(owner), egress=[{"ports": _tcp([443])}])


def _trackers(owner: Owner, ports: Iterable[int]) -> Manifest:
    """The trainer sends its numbers."""
    return network_policy(
        owner, "trackers", {"matchLabels": selector(owner.name, "trainer")}, egress=[{"ports": _tcp(ports)}]
    )


def _spans(owner: Owner, otlp: Otlp) -> Manifest:
    """All components send spans."""
    ports = _tcp([_port(otlp.endpoint)])
    return network_policy(owner, "spans", {"matchLabels": selector(owner.name)}, egress=[{"ports": ports}])


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _tcp(ports: Iterable[int]) -> list[Manifest]:
    return [{"protocol": "TCP", "port": port} for port in sorted(ports)]


def _task_app_elsewhere(job: Job, owner: Owner) -> list[Manifest]:
    """The trainer reaches the port of its URL; the server reaches inference from wherever it runs, with its key."""
    assert job.spec.task_app.url is not None
    trainer, inference = ({"matchLabels": selector(owner.name, component)} for component in ("trainer", "inference"))
    return [
        network_policy(owner, "taskapp-url", trainer, egress=[{"ports": _tcp([_port(job.spec.task_app.url)])}]),
        network_policy(owner, "inference-url", inference, ingress=[{"ports": _HTTP}]),
    ]


def _inference_and_trainer(owner: Owner) -> Manifest:
    """Selects their pods."""
    either = {"key": COMPONENT_LABEL, "operator": "In", "values": [SUFFIXES["inference"], SUFFIXES["trainer"]]}
    return {"matchLabels": selector(owner.name), "matchExpressions": [either]}


def network_policy(owner: Owner, name: str, pods: Manifest, **rules: list[Manifest]) -> Manifest:
    """The NetworkPolicy ``JOB-name`` of the selected pods: ``ingress``, ``egress`` or both."""
    types = [direction.capitalize() for direction in rules]
    spec = {"podSelector": pods, "policyTypes": types, **rules}
    return owned_manifest("networking.k8s.io/v1", "NetworkPolicy", f"{owner.name}-{name}", owner, spec=spec)
