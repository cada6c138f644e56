"""GPUs by dynamic resource allocation: one ResourceClaimTemplate per component with ``gpu.resourceClaim``. Kubernetes
makes a claim of it for every pod, and the scheduler finds the node that has such devices.

The driver names a product as the device does (``NVIDIA H200``), the node label with hyphens (``NVIDIA-H200``): they
are compared as the label writes them, so a job's ``products`` mean the same either way.
"""

from __future__ import annotations

import json

from visionrl.checks import runs_inference
from visionrl.job import Component, Gpu, Job
from visionrl_core.kinds import CLAIM_TEMPLATE
from visionrl_core.manifests.common import Manifest, Owner, component_name, labels, owned_manifest

GPUS = "gpus"
"""Name of the request, and of the claim within a pod."""


def claim_templates(job: Job, owner: Owner) -> list[Manifest]:
    settings: dict[Component, Gpu | None] = {"trainer": job.spec.trainer.gpu}
    if runs_inference(job.spec):
        settings["inference"] = job.spec.inference.gpu
    return [
        _template(job, owner, component, gpu)
        for component, gpu in settings.items()
        if gpu is not None and gpu.resource_claim is not None
    ]


def claim_template_name(job_name: str, component: Component) -> str:
    return f"{component_name(job_name, component)}-{GPUS}"


def _template(job: Job, owner: Owner, component: Component, gpu: Gpu) -> Manifest:
    claim = gpu.resource_claim
    assert claim is not None
    request: Manifest = {"deviceClassName": claim.device_class, "allocationMode": "ExactCount", "count": gpu.count}
    if gpu.products:
        request["selectors"] = [{"cel": {"expression": _is_one_of(gpu.products, claim.product_attribute)}}]
    return owned_manifest(
        CLAIM_TEMPLATE.api_version,
        CLAIM_TEMPLATE.name,
        claim_template_name(job.name, component),
        owner,
        component,
        spec={
            "metadata": {"labels": labels(job.name, component)},
            "spec": {"devices": {"requests": [{"name": GPUS, "exactly": request}]}},
        },
    )


def _is_one_of(products: list[str], attribute: str) -> str:
    """In CEL. A device without the attribute is none of them; to read it would be an error, which stops scheduling."""
    domain, _, name = attribute.partition("/")
    attributes = f"device.attributes[{json.dumps(domain)}]"
    return f'"{name}" in {attributes} && {attributes}.{name}.replace(" ", "-") in {json.dumps(products)}'
