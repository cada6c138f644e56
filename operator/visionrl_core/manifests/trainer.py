"""The trainer: one Kubernetes Job per attempt, which resumes from the run folder."""

from __future__ import annotations

from visionrl.job import Job
from visionrl_core.manifests.common import (
    ATTEMPT_LABEL,
    Manifest,
    Owner,
    owned_manifest,
    trainer_job_name,
)
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.placement import trainer_affinity
from visionrl_core.manifests.pods import (
    CACHE_DIR,
    RUN_DIR,
    ComponentTemplate,
    Volume,
    cache_volume,
    pod_template,
    probe,
)
from visionrl_core.manifests.storage import run_claim_name

STARTUP_SECONDS = 600


def trainer_job(job: Job, attempt: int, owner: Owner, key: str = "", defaults: PodDefaults = NO_DEFAULTS) -> Manifest:
    """Retries are the operator's (``failurePolicy``): the Job itself starts its pod once. An existing Job is never
    applied again: its template is immutable, and a new attempt gets a new Job."""
    claim = run_claim_name(job, owner)
    run_source: Manifest = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    settings = job.spec.trainer
    template = ComponentTemplate(
        component="trainer",
        module="visionrl_trainer",
        resources=settings.resources,
        patch=job.spec.overrides.trainer,
        gpu=settings.gpu,
        volumes=(Volume("run", RUN_DIR, run_source), cache_volume(job)),
        env=(
            ("VISIONRL_RUN_DIR", RUN_DIR),
            ("VISIONRL_CACHE_DIR", CACHE_DIR),
            # Threads that spin while they wait for one without a core make a training step several times slower.
            ("OMP_WAIT_POLICY", "PASSIVE"),
        ),
        env_from=job.spec.tracking.secret_ref,
        urls=("taskApp", "inference"),
        pod_affinity=trainer_affinity(job),
        probes={
            "startupProbe": probe(1, STARTUP_SECONDS),
            "readinessProbe": probe(2, 3),
            # An update may hold the interpreter; a deadlock is found by the trainer itself (visionrl.hang).
            "livenessProbe": probe(10, 12, timeout=10),
        },
    )
    job_manifest = owned_manifest(
        "batch/v1",
        "Job",
        trainer_job_name(job.name, attempt),
        owner,
        "trainer",
        spec={"backoffLimit": 0, "template": pod_template(job, owner, key, template, defaults, "Never", attempt)},
    )
    job_manifest["metadata"]["labels"][ATTEMPT_LABEL] = str(attempt)
    return job_manifest
