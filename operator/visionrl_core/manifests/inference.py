"""Inference: vLLM with the base model and the policy's adapters."""

from __future__ import annotations

from visionrl.job import Job
from visionrl_core.manifests.common import Manifest, Owner
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.placement import inference_affinity
from visionrl_core.manifests.pods import CACHE_DIR, ComponentTemplate, Volume, cache_volume, pod_template, probe
from visionrl_core.manifests.workloads import deployment

# Processes of the engine exchange tensors through shared memory; a container's 64 MiB default is too small.
SHARED_MEMORY = Volume("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}})


def inference_deployment(job: Job, owner: Owner, key: str = "", defaults: PodDefaults = NO_DEFAULTS) -> Manifest:
    """``key`` is the digest of the job's key."""
    settings = job.spec.inference
    template = ComponentTemplate(
        component="inference",
        module="visionrl_inference",
        resources=settings.resources,
        patch=job.spec.overrides.inference,
        gpu=settings.gpu,
        volumes=(cache_volume(job), SHARED_MEMORY),
        env=(("VISIONRL_CACHE_DIR", CACHE_DIR),),
        urls=("trainer",),
        pod_affinity=inference_affinity(job),
        probes={
            "startupProbe": probe(1, settings.startup_timeout_seconds),
            "readinessProbe": probe(2, 3),
            "livenessProbe": probe(10, 6, timeout=10),
        },
    )
    pod = pod_template(job, owner, key, template, defaults, "Always")
    return deployment(owner, "inference", pod, settings.startup_timeout_seconds + 300)
