"""Which specification a job runs with: the newest one that is valid and changes only what may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from visionrl.checks import Problem, contradictions, pod_templates, warnings
from visionrl.job import Component, Job
from visionrl.problems import dotted, problems
from visionrl.versions import validate_known
from visionrl_core.container_images import images_of, refused, with_images
from visionrl_core.kinds import CLAIM_TEMPLATE
from visionrl_core.mutability import MUTABLE_PATHS, changed_immutable_fields, with_mutable_fields_of
from visionrl_core.observed import NO_RULES, ClusterRules

NO_RESOURCE_CLAIMS = (
    f"the cluster does not offer {CLAIM_TEMPLATE.api_version} (Kubernetes 1.34), or the operator may not use it "
    "(chart: resourceClaims.enabled). Leave it out: GPUs then come from a device plugin"
)


@dataclass(frozen=True)
class Verdict:
    """``job`` is what to run with; None where nothing valid was ever accepted. ``reason`` and ``message`` are those of
    the condition *Accepted*."""

    job: Job | None
    accepted: bool
    reason: str
    message: str = ""


def validate(document: Any, accepted: Job | None, rules: ClusterRules = NO_RULES) -> Verdict:
    """Check an object as the API server holds it against the job that was accepted before (None: none was). The
    cluster's rules are for new jobs: an accepted one keeps its images, and what it was allowed."""
    allowed_images = rules.allowed_images
    job, wrong, unknown = parse(document)
    if job is None:
        return Verdict(accepted, False, "Invalid", _shown(wrong))
    job = with_images(job, images_of(accepted) if accepted else rules.images)
    if accepted is None and (component := refused(images_of(job), allowed_images)) is not None:
        return Verdict(None, False, "ImageNotAllowed", _not_allowed(job, component, allowed_images))
    if accepted is None and not rules.resource_claims and (asked := _resource_claims(job)):
        return Verdict(None, False, "NoResourceClaims", f"{', '.join(asked)}: {NO_RESOURCE_CLAIMS}")
    if accepted is None and (beyond := _beyond_consent(job, allowed_images, rules.allow_privileged)):
        return Verdict(None, False, "OverrideNotAllowed", _shown(beyond))
    if accepted is None:
        return _valid(job, unknown)
    if changed := changed_immutable_fields(accepted.spec, job.spec):
        # What may change takes effect all the same: a job can be suspended while another field is wrong.
        merged = with_mutable_fields_of(accepted, job.spec)
        return Verdict(merged if not contradictions(merged.spec) else accepted, False, "Immutable", refusal(changed))
    return _valid(job, unknown)


def _valid(job: Job, unknown: list[str]) -> Verdict:
    """Accepted; the message has what is probably not meant."""
    doubts = warnings(job.spec)
    if unknown:
        return Verdict(job, True, "FieldsIgnored", "; ".join(filter(None, (ignored(unknown), _shown(doubts)))))
    return Verdict(job, True, "ValidWithWarnings", _shown(doubts)) if doubts else Verdict(job, True, "Valid")


def parse(document: Any) -> tuple[Job | None, list[Problem], list[str]]:
    """Parse and check: the job, or everything that is wrong; and the paths of fields that were left out.

    An API server prunes what the definition does not have. So an unknown field here is not a typing error: the
    definition is newer than this operator, as it is during an upgrade, when the server fills such fields with their
    defaults in every job.
    """
    try:
        job, unknown = validate_known(Job, document)
    except ValidationError as error:
        return None, list(problems(error, Job)), []
    wrong = contradictions(job.spec)
    return (None, wrong, []) if wrong else (job, [], [dotted(location) for location in unknown])


def ignored(unknown: list[str]) -> str:
    """The message where the definition is newer than the operator."""
    return f"ignored until the operator is upgraded, because it does not know these fields: {', '.join(unknown)}"


def refusal(changed: list[str]) -> str:
    """The message where fixed fields were changed."""
    return f"{', '.join(changed)} cannot change after the job was accepted; may change: {', '.join(MUTABLE_PATHS)}"


def _resource_claims(job: Job) -> list[str]:
    """Where a job asks for GPUs by claims."""
    parts = {"inference": job.spec.inference.gpu, "trainer": job.spec.trainer.gpu}
    return [f"spec.{part}.gpu.resourceClaim" for part, gpu in parts.items() if gpu and gpu.resource_claim]


def _beyond_consent(job: Job, allowed: Sequence[str], privileged: bool) -> list[Problem]:
    """What a job's pod templates say that this cluster does not allow."""
    found = []
    for component, patch in job.spec.overrides:
        path = f"spec.overrides.{to_camel(component)}.podTemplate"
        found += [] if privileged else list(pod_templates.privileges(patch.pod_template, path))
        for at, image in pod_templates.images(patch.pod_template, path):
            if allowed and not image.startswith(tuple(allowed)):
                found.append(Problem(at, f"{image} is not allowed in this cluster; {_prefixes(allowed)}"))
    return found


def _prefixes(allowed: Sequence[str]) -> str:
    return f"it must begin with {' or '.join(allowed)}"


def _not_allowed(job: Job, component: Component, allowed: Sequence[str]) -> str:
    image = images_of(job)[component]
    return f"spec.{component}.image: {image} is not allowed in this cluster; {_prefixes(allowed)}"


def _shown(wrong: list[Problem], limit: int = 3) -> str:
    shown = "; ".join(str(problem) for problem in wrong[:limit])
    return f"{shown}; and {len(wrong) - limit} more" if len(wrong) > limit else shown
