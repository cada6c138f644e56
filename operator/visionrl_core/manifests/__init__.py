"""The objects that should exist for a job: pure builders from (job, attempt, owner) to Kubernetes manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visionrl.checks import runs_task_app
from visionrl.job import Job
from visionrl_core.manifests.claims import claim_templates
from visionrl_core.manifests.common import COMPONENTS, Manifest, Owner, key_digest, seal
from visionrl_core.manifests.config import config_map, secret
from visionrl_core.manifests.export import export_policy
from visionrl_core.manifests.inference import inference_deployment
from visionrl_core.manifests.network import network_policies
from visionrl_core.manifests.storage import run_claim
from visionrl_core.manifests.taskapp import task_app_deployment
from visionrl_core.manifests.trainer import trainer_job
from visionrl_core.manifests.workloads import service


def base_manifests(
    job: Job, owner: Owner, key: str | None = None, scraped_by: Sequence[Mapping[str, Any]] = ()
) -> list[Manifest]:
    """What a job needs for as long as it exists, in the order of creation: configuration, claim, addresses."""
    claim, export = run_claim(job, owner), export_policy(job, owner)
    manifests = [
        secret(owner, key),
        config_map(job, owner),
        *claim_templates(job, owner),
        *([claim] if claim else []),
        *network_policies(job, owner, scraped_by),
        *([export] if export else []),
        *(service(owner, component) for component in COMPONENTS if component != "taskApp" or runs_task_app(job.spec)),
    ]
    return [seal(manifest) for manifest in manifests]


def all_manifests(job: Job, attempt: int, owner: Owner, key: str) -> list[Manifest]:
    """Every object of a job that runs."""
    shown = key_digest(key)
    workloads = [
        *([task_app_deployment(job, owner, shown)] if runs_task_app(job.spec) else []),
        inference_deployment(job, owner, shown),
        trainer_job(job, attempt, owner, shown),
    ]
    return [*base_manifests(job, owner, key), *(seal(manifest) for manifest in workloads)]
