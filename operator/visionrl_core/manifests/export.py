"""The exporter: copies the trained policy out of the run folder, once training is complete. It needs no GPU."""

from __future__ import annotations

from typing import Literal

from visionrl.job import Job, Resources
from visionrl_core.manifests.common import Manifest, Owner, digest, labels, owned_manifest, selector
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.network import network_policy
from visionrl_core.manifests.pods import (
    CACHE_DIR,
    RUN_DIR,
    ComponentTemplate,
    Volume,
    cache_volume,
    pod_template,
)
from visionrl_core.manifests.storage import run_claim_name

EXPORT: Literal["export"] = "export"
EXPORT_DIR = "/var/lib/visionrl/export"
CLAIM_URL = "pvc://"
NAME_DIGITS = 5
# The kubelet's own back-off grows to 300 s: about eight hours.
RETRIES = 100
SMALL = Resources(cpu="500m", memory="1Gi")


def export_job_name(job: Job, attempt: int) -> str:
    """Another run, or another destination, is another Job."""
    export = job.spec.storage.export
    wanted = export.model_dump(mode="json", by_alias=True) if export else None
    return f"{job.name}-export-{digest([attempt, wanted])[:NAME_DIGITS]}"


def export_job(job: Job, attempt: int, owner: Owner, key: str = "", defaults: PodDefaults = NO_DEFAULTS) -> Manifest:
    """The kubelet starts its container again until it succeeds: what has arrived is not copied again."""
    export = job.spec.storage.export
    assert export is not None
    run = {"persistentVolumeClaim": {"claimName": run_claim_name(job, owner), "readOnly": True}}
    claims = sorted({url.removeprefix(CLAIM_URL).split("/")[0] for url in urls(job) if url.startswith(CLAIM_URL)})
    template = ComponentTemplate(
        component="trainer",
        part=EXPORT,
        module="visionrl_trainer.export",
        resources=job.spec.trainer.resources if export.merged_model else SMALL,
        patch=job.spec.overrides.trainer,
        volumes=(
            Volume("run", RUN_DIR, run, read_only=True),
            cache_volume(job),
            *(
                Volume(f"export-{index}", f"{EXPORT_DIR}/{claim}", {"persistentVolumeClaim": {"claimName": claim}})
                for index, claim in enumerate(claims)
            ),
        ),
        env=(("VISIONRL_RUN_DIR", RUN_DIR), ("VISIONRL_CACHE_DIR", CACHE_DIR), ("VISIONRL_EXPORT_DIR", EXPORT_DIR)),
        env_from=export.secret_name,
        probes={},
    )
    pod = pod_template(job, owner, key, template, defaults, "OnFailure")
    manifest = owned_manifest(
        "batch/v1", "Job", export_job_name(job, attempt), owner, spec={"backoffLimit": RETRIES, "template": pod}
    )
    manifest["metadata"]["labels"] = labels(job.name, EXPORT)
    return manifest


def export_policy(job: Job, owner: Owner) -> Manifest | None:
    """The exporter reaches object stores and the hub, wherever they are; other pods of the job do not."""
    export = job.spec.storage.export
    if export is None or (not export.merged_model and all(url.startswith(CLAIM_URL) for url in urls(job))):
        return None
    return network_policy(owner, "export", {"matchLabels": selector(owner.name, EXPORT)}, egress=[{}])


def urls(job: Job) -> list[str]:
    """Where copies are made."""
    export = job.spec.storage.export
    return [url for url in (export.adapter, export.merged_model) if url] if export else []
