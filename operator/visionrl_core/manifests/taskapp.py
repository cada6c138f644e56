"""The task app: an environment over HTTP."""

from __future__ import annotations

from visionrl.job import Job
from visionrl_core.manifests.common import Manifest, Owner
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.pods import CACHE_DIR, TRACE_DIR, ComponentTemplate, Volume, pod_template, probe
from visionrl_core.manifests.workloads import deployment

# Compiling the renderer on a slow core takes a minute or two.
STARTUP_SECONDS = 300


def task_app_deployment(job: Job, owner: Owner, key: str = "", defaults: PodDefaults = NO_DEFAULTS) -> Manifest:
    """``key`` is the digest of the job's key."""
    template = ComponentTemplate(
        component="taskApp",
        module="visionrl_taskapp",
        command=tuple(job.spec.task_app.command or ()),
        resources=job.spec.task_app.resources,
        patch=job.spec.overrides.task_app,
        volumes=(Volume("cache", CACHE_DIR), Volume("traces", TRACE_DIR)),
        env=(("VISIONRL_TRACE_DIR", TRACE_DIR), ("NUMBA_CACHE_DIR", f"{CACHE_DIR}/numba")),
        urls=("inference",),
        probes={
            "startupProbe": probe(1, STARTUP_SECONDS),
            "readinessProbe": probe(2, 3),
            "livenessProbe": probe(10, 6),
        },
    )
    pod = pod_template(job, owner, key, template, defaults, "Always")
    return deployment(owner, "taskApp", pod, STARTUP_SECONDS + 300)
