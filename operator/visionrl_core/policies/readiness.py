"""What may start: each function names the first thing that a component waits for, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from visionrl.checks import exports_base, runs_inference, runs_task_app
from visionrl.job import JobSpec
from visionrl_core.observed import Observed


@dataclass(frozen=True)
class Waiting:
    """Why a component does not start yet: condition reason and message."""

    reason: str
    message: str


def inference_waits_for(spec: JobSpec, observed: Observed, exists: bool) -> Waiting | None:
    """``exists``: inference was started before; it stays then, whatever the trainer does."""
    if not runs_inference(spec):
        return Waiting("NotNeeded", "no rollouts and no evaluation")
    if exists:
        return None
    if exports_base(spec) and not (observed.report and observed.report.base_ready):
        return Waiting("WaitingForBase", "waits for the trainer's warm start")
    return None


def trainer_waits_for(spec: JobSpec, observed: Observed) -> Waiting | None:
    if runs_task_app(spec) and not observed.task_app.ready:
        return Waiting("WaitingForTaskApp", "waits for the task app")
    if not exports_base(spec) and runs_inference(spec) and not observed.inference.ready:
        return Waiting("WaitingForInference", "waits for inference")
    return None
