"""The pod template that a running Deployment was made with.

An operator of another version builds other templates for the same job. To apply one would restart a server in the
middle of training, so a Deployment carries the template that it was made with, and what that was made for. It keeps
the template for as long as it exists and is wanted for the same. New attempts of the trainer, and Deployments that are
made anew (after a suspension), take the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from visionrl.job import API_GROUP
from visionrl_core.manifests.common import INPUTS_ANNOTATION, Manifest, digest

TEMPLATE_ANNOTATION = f"{API_GROUP}/template"


def with_revision(deployment: Manifest, inputs: Any, live: Mapping[str, Any] | None) -> Manifest:
    """The Deployment with the template of the live one, where that was made for the same ``inputs``: what of the job
    and its key may change the template while the Deployment exists."""
    wanted_for = digest(inputs)
    template = _kept_template(live, wanted_for) or deployment["spec"]["template"]
    annotations = {
        **deployment["metadata"].get("annotations", {}),
        INPUTS_ANNOTATION: wanted_for,
        TEMPLATE_ANNOTATION: json.dumps(template, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    }
    return {
        **deployment,
        "metadata": {**deployment["metadata"], "annotations": annotations},
        "spec": {**deployment["spec"], "template": template},
    }


def _kept_template(live: Mapping[str, Any] | None, wanted_for: str) -> Manifest | None:
    if live is None:
        return None
    annotations = live.get("metadata", {}).get("annotations", {})
    made_for, text = annotations.get(INPUTS_ANNOTATION), annotations.get(TEMPLATE_ANNOTATION)
    if made_for is not None and made_for != wanted_for:
        return None
    if text is None:
        # Made before Deployments carried their template: the live one, with the API server's defaults in it.
        template: Manifest | None = live.get("spec", {}).get("template")
        return template
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "spec" in found else None
