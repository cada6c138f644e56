"""Which specification a job runs with: the newest one that is valid and changes only what may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from visionrl.checks import Problem, contradictions
from visionrl.job import Job
from visionrl.jobfile import problems
from visionrl_operator.mutability import MUTABLE_PATHS, changed_immutable_fields, with_mutable_fields_of


@dataclass(frozen=True)
class Verdict:
    """``job`` is what to run with; None where nothing valid was ever accepted. ``reason`` and ``message`` are those of
    the condition *Accepted*."""

    job: Job | None
    accepted: bool
    reason: str
    message: str = ""


def validate(document: Any, accepted: Job | None) -> Verdict:
    """Check an object as the API server holds it against the job that was accepted before (None: none was)."""
    job, wrong = parse(document)
    if job is None:
        return Verdict(accepted, False, "Invalid", _shown(wrong))
    if accepted is None:
        return Verdict(job, True, "Valid")
    if changed := changed_immutable_fields(accepted.spec, job.spec):
        # What may change takes effect all the same: a job can be suspended while another field is wrong.
        merged = with_mutable_fields_of(accepted, job.spec)
        return Verdict(merged if not contradictions(merged.spec) else accepted, False, "Immutable", refusal(changed))
    return Verdict(job, True, "Valid")


def parse(document: Any) -> tuple[Job | None, list[Problem]]:
    """Strict parse and checks; the job, or everything that is wrong."""
    try:
        job = Job.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, list(problems(error, Job))
    wrong = contradictions(job.spec)
    return (None, wrong) if wrong else (job, [])


def refusal(changed: list[str]) -> str:
    """What to tell someone who changed fixed fields."""
    return f"{', '.join(changed)} cannot change after the job was accepted; may change: {', '.join(MUTABLE_PATHS)}"


def _shown(wrong: list[Problem], limit: int = 3) -> str:
    shown = "; ".join(str(problem) for problem in wrong[:limit])
    return f"{shown}; and {len(wrong) - limit} more" if len(wrong) > limit else shown
