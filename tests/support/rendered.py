"""The objects that the operator makes for a job, by what tests ask of them."""

from __future__ import annotations

from typing import Any

from tests.support.jobs import job
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.common import Manifest, Owner, Ref, ref
from visionrl_core.manifests.storage import claim_of

OWNER = Owner("demo", "team", "uid-1")
CLAIM = claim_of(OWNER)
COMPONENTS = ("taskapp", "inference", "trainer")
TWO_GPUS: dict[str, Any] = {"inference.gpu": {}, "trainer.gpu": {}}


def objects(changes: dict[str, Any] | None = None, attempt: int = 0) -> dict[Ref, Manifest]:
    return {ref(manifest): manifest for manifest in all_manifests(job(changes), attempt, OWNER, "the-key")}


def pods(changes: dict[str, Any] | None = None) -> dict[str, Manifest]:
    """Pod templates by component."""
    templates = [c["spec"]["template"] for c in objects(changes).values() if c["kind"] in ("Deployment", "Job")]
    return {template["metadata"]["labels"]["visionrl.dev/component"]: template for template in templates}


def container(template: Manifest) -> Manifest:
    return template["spec"]["containers"][0]


def env(template: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(template)["env"]}
