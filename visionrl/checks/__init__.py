"""Rules of a job that span several fields: what contradicts itself, what is probably not meant, what follows."""

from visionrl.checks.contradictions import (
    MIN_SAMPLING_TEMPERATURE,
    NOT_WITH_A_CLAIM,
    contradictions,
    contradictions_without,
)
from visionrl.checks.derived import (
    evaluation_seeds,
    exports_base,
    policy_iterations,
    runs_inference,
    runs_task_app,
    takes_images,
    undetermined,
    uses_vision,
)
from visionrl.checks.pod_templates import RESERVED_ENV
from visionrl.checks.warnings import warnings
from visionrl.problems import Problem

__all__ = [
    "MIN_SAMPLING_TEMPERATURE",
    "NOT_WITH_A_CLAIM",
    "RESERVED_ENV",
    "Problem",
    "contradictions",
    "contradictions_without",
    "evaluation_seeds",
    "exports_base",
    "policy_iterations",
    "runs_inference",
    "runs_task_app",
    "takes_images",
    "undetermined",
    "uses_vision",
    "warnings",
]
