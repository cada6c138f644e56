"""The pod template that the three components share: what a container gets (docs/architecture.md), nothing more.

Pods fulfil the *restricted* Pod Security Standard: no root, no capabilities, a read-only root file system. What a
component writes goes to volumes: ``/tmp``, the cache and, for trainer and task app, the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from visionrl.job import TASKAPP_KEY, Component, EnvVar, Gpu, Job, PodPatch, Resources, Toleration
from visionrl_core.container_images import images_of
from visionrl_core.manifests.claims import GPUS, claim_template_name
from visionrl_core.manifests.common import (
    ATTEMPT_LABEL,
    CONFIG_ANNOTATION,
    CONTAINER_SECURITY,
    KEY_ANNOTATION,
    OWNER_ANNOTATION,
    POD_SECURITY,
    PORT,
    SUFFIXES,
    Manifest,
    Owner,
    Part,
    component_url,
    config_digest,
    labels,
)
from visionrl_core.manifests.config import JOB_FILE, KEY_FILE, config_name, key_name
from visionrl_core.manifests.merge import PodDefaults, merged, with_defaults

STOP_SECONDS = 30

JOB_DIR = "/etc/visionrl/job"
KEY_DIR = "/etc/visionrl/key"
CACHE_DIR = "/var/cache/visionrl"
RUN_DIR = "/var/lib/visionrl/run"
TRACE_DIR = "/var/lib/visionrl/traces"
TEMPORARY_DIR = "/tmp"


@dataclass(frozen=True)
class Volume:
    """A volume and where the container sees it; ``source`` is its Kubernetes volume source."""

    name: str
    path: str
    source: Manifest = field(default_factory=lambda: {"emptyDir": {}})
    read_only: bool = False


@dataclass(frozen=True)
class ComponentTemplate:
    """What distinguishes one component's pod from another's."""

    component: Component
    module: str
    resources: Resources
    patch: PodPatch
    probes: dict[str, Manifest]
    command: tuple[str, ...] = ()
    """In place of the module."""
    gpu: Gpu | None = None
    volumes: tuple[Volume, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    urls: tuple[Component, ...] = ()
    """Components that it calls."""
    part: Part | None = None
    """What the pod is, where it is none of the components: it runs the image of ``component`` and is called so."""
    env_from: str | None = None
    """Secret whose keys become environment variables, too."""
    pod_affinity: Manifest = field(default_factory=dict)
    """``podAffinity`` and ``podAntiAffinity``."""


def probe(period: int, failures: int, timeout: int = 5) -> Manifest:
    """``GET /health`` every ``period`` seconds."""
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }


def cache_volume(job: Job) -> Volume:
    """Models, fetched adapters and compiled kernels."""
    claim = job.spec.storage.model_cache_claim
    source: Manifest = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    return Volume("cache", CACHE_DIR, source)


def pod_template(
    job: Job,
    owner: Owner,
    key: str,
    template: ComponentTemplate,
    defaults: PodDefaults,
    restart_policy: str,
    attempt: int | None = None,
) -> Manifest:
    """The pod template of a component: the operator's, over it the cluster's defaults, and over both what the job says
    itself. ``key`` is the digest of the job's key; ``attempt`` labels a trainer's pods."""
    volumes = _volumes(job, template)
    spec: Manifest = {
        "restartPolicy": restart_policy,
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The pause container is the first process then: a first process that has no handler yet, because it still
        # imports torch, is spared by SIGTERM, and would hold its GPU for the whole grace period.
        "shareProcessNamespace": True,
        "securityContext": POD_SECURITY,
        "containers": [_container(job, owner, template, volumes)],
        "volumes": [{"name": volume.name, **volume.source} for volume in volumes],
    }
    own = {"metadata": _metadata(job, owner, key, template, attempt), "spec": spec}
    pod = merged(with_defaults(own, defaults), _said(job, template))
    return merged(pod, template.patch.pod_template if template.part is None else {})


def _said(job: Job, template: ComponentTemplate) -> Manifest:
    """What the job says about the pod in fields of its own."""
    patch = template.patch
    container = {
        "name": SUFFIXES[template.part or template.component],
        "env": [_variable(variable) for variable in patch.env],
        **({"imagePullPolicy": patch.image_pull_policy} if patch.image_pull_policy else {}),
    }
    return {
        "metadata": {"labels": patch.labels, "annotations": patch.annotations},
        "spec": {"containers": [container], **_scheduling(job, template), **_patched(patch)},
    }


def _metadata(job: Job, owner: Owner, key: str, template: ComponentTemplate, attempt: int | None) -> Manifest:
    part = template.part or template.component
    own_labels = labels(job.name, part)
    annotations = {
        CONFIG_ANNOTATION: config_digest(job),
        OWNER_ANNOTATION: owner.uid,
        # A new key replaces the pods: every component reads the key when it starts, and all must have the same.
        KEY_ANNOTATION: key,
        # Which one `kubectl logs` and `kubectl exec` mean, where sidecars were injected before it.
        "kubectl.kubernetes.io/default-container": SUFFIXES[part],
    }
    if attempt is not None:
        own_labels[ATTEMPT_LABEL] = str(attempt)
    if template.gpu is not None:
        # A drain may evict these pods (the job resumes from its checkpoint); an autoscaler must not, to save a node.
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] = "false"
    return {"labels": own_labels, "annotations": annotations}


def _container(job: Job, owner: Owner, template: ComponentTemplate, volumes: list[Volume]) -> Manifest:
    return {
        "name": SUFFIXES[template.part or template.component],
        "image": images_of(job)[template.component],
        "command": list(template.command) or ["python", "-m", template.module],
        "env": [
            *({"name": name, "value": value} for name, value in _env(job, owner, template)),
            *_secrets(job, template),
        ],
        **({"envFrom": [{"secretRef": {"name": template.env_from}}]} if template.env_from else {}),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(template.resources, template.gpu),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": volume.name, "mountPath": volume.path, **({"readOnly": True} if volume.read_only else {})}
            for volume in volumes
        ],
        # The end of the log becomes the cause that the job's status shows.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **template.probes,
    }


def _env(job: Job, owner: Owner, template: ComponentTemplate) -> list[tuple[str, str]]:
    return [
        ("VISIONRL_JOB", f"{JOB_DIR}/{JOB_FILE}"),
        ("VISIONRL_KEY_FILE", f"{KEY_DIR}/{KEY_FILE}"),
        ("VISIONRL_HOST", "0.0.0.0"),
        ("VISIONRL_PORT", str(PORT)),
        *((f"VISIONRL_{SUFFIXES[other].upper()}_URL", component_url(job, owner, other)) for other in template.urls),
        *template.env,
        ("HOME", TEMPORARY_DIR),
        ("PYTHONUNBUFFERED", "1"),
    ]


def _secrets(job: Job, template: ComponentTemplate) -> list[Manifest]:
    """The key of a task app that runs elsewhere: the trainer asks it with this key, and it asks inference with it."""
    key = job.spec.task_app.key_secret
    if key is None or template.part is not None:
        return []
    return [{"name": TASKAPP_KEY, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}}]


def _variable(variable: EnvVar) -> Manifest:
    return variable.model_dump(by_alias=True, exclude_none=True)


def _volumes(job: Job, template: ComponentTemplate) -> list[Volume]:
    return [
        Volume("job", JOB_DIR, {"configMap": {"name": config_name(job.name)}}, read_only=True),
        Volume("key", KEY_DIR, {"secret": {"secretName": key_name(job.name), "defaultMode": 0o440}}, read_only=True),
        Volume("tmp", TEMPORARY_DIR),
        *template.volumes,
    ]


def _resources(resources: Resources, gpu: Gpu | None) -> Manifest:
    requests: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
    limits: dict[str, Any] = {"memory": resources.memory}
    claims: dict[str, Any] = {}
    if resources.ephemeral_storage:
        requests["ephemeral-storage"] = limits["ephemeral-storage"] = resources.ephemeral_storage
    if gpu is not None and gpu.resource_claim is not None:
        claims = {"claims": [{"name": GPUS}]}
    elif gpu is not None:
        requests[gpu.resource_name] = limits[gpu.resource_name] = str(gpu.count)
    return {"requests": requests, "limits": limits, **claims}


def _scheduling(job: Job, template: ComponentTemplate) -> Manifest:
    gpu, patch = template.gpu, template.patch
    affinity = dict(template.pod_affinity)
    claims = []
    if gpu is not None and gpu.resource_claim is not None:
        name = claim_template_name(job.name, template.component)
        claims.append({"name": GPUS, "resourceClaimTemplateName": name})
    elif gpu is not None and gpu.products:
        products = {"key": gpu.product_label, "operator": "In", "values": list(gpu.products)}
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [products]}]}
        }
    tolerations = [*(gpu.tolerations if gpu else []), *patch.tolerations]
    spec = {
        "nodeSelector": {**job.spec.placement.node_selector, **patch.node_selector},
        "affinity": affinity,
        "tolerations": [_toleration(toleration) for toleration in tolerations],
        "runtimeClassName": gpu.runtime_class_name if gpu else None,
        "resourceClaims": claims,
    }
    return {name: value for name, value in spec.items() if value}


def _toleration(toleration: Toleration) -> Manifest:
    return toleration.model_dump(by_alias=True, exclude_none=True)


def _patched(patch: PodPatch) -> Manifest:
    spec = {
        "serviceAccountName": patch.service_account_name,
        "priorityClassName": patch.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in patch.image_pull_secrets],
    }
    return {name: value for name, value in spec.items() if value}
