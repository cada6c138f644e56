"""The status of a job: what conditions, components and the trainer's report say of it."""

from __future__ import annotations

from datetime import datetime

from visionrl.checks import runs_task_app
from visionrl.job import Job
from visionrl.status import JobStatus
from visionrl_core import accepted, conditions
from visionrl_core.attempts import AttemptEnd
from visionrl_core.conditions import ComponentView
from visionrl_core.desired import Plan
from visionrl_core.observed import JobObject, Observed, ObservedComponent
from visionrl_core.policies import results
from visionrl_core.policies.queueing import Admission
from visionrl_core.policies.readiness import Waiting
from visionrl_core.policies.validation import Verdict


def report(
    job_object: JobObject,
    job: Job,
    verdict: Verdict,
    status: JobStatus,
    observed: Observed,
    admission: Admission | None,
    outcome: AttemptEnd | None,
    plan: Plan,
    now: datetime,
) -> JobStatus:
    run = observed.trainer(status.attempt)
    views = (
        _task_app(job, observed),
        ComponentView("inference", observed.inference, plan.inference_waits),
        ComponentView(
            "trainer",
            run.state if run else ObservedComponent(),
            plan.trainer_waits,
            ended=run is not None and run.outcome != "Active",
        ),
    )
    kept = results.kept(job, job_object.owner, status, observed, finished=outcome is not None)
    exported = results.exported(status.result) if status.result else None
    found = conditions.findings(job.spec, status, verdict, observed, views, admission, outcome, kept, exported)
    timed = conditions.with_times(status.conditions, found, job_object.generation, now)
    # A trainer that still loads does not know where the run is.
    last = run.report if run is not None and run.outcome == "Succeeded" else None
    report = last or (observed.report if observed.report and observed.report.phase != "Starting" else None)
    return status.model_copy(
        update={
            "observed_generation": job_object.generation,
            "phase": conditions.phase(timed),
            "reason": conditions.why(timed, views, observed),
            "conditions": timed,
            "components": conditions.component_statuses(status, views),
            "progress": report.progress if report else status.progress,
            "policy": report.policy if report else status.policy,
            "accepted": accepted.text_of(job),
        }
    )


def _task_app(job: Job, observed: Observed) -> ComponentView:
    """Of one that runs elsewhere, the trainer tells whether it has answered."""
    if runs_task_app(job.spec):
        return ComponentView("taskApp", observed.task_app)
    answers = observed.report is not None and observed.report.task_app_ready
    waiting = Waiting("RunsElsewhere", f"the trainer asks {job.spec.task_app.url}")
    return ComponentView("taskApp", ObservedComponent(ready=answers), waiting)


def rejected(job_object: JobObject, previous: JobStatus, verdict: Verdict, now: datetime) -> JobStatus:
    """Nothing valid was ever accepted: say what is wrong and make nothing."""
    others = [
        conditions.Finding(old.type, old.status == "True", old.reason, old.message)
        for old in previous.conditions
        if old.type != "Accepted"
    ]
    found = [conditions.accepted(verdict), *others]
    timed = conditions.with_times(previous.conditions, found, job_object.generation, now)
    return previous.model_copy(
        update={
            "observed_generation": job_object.generation,
            "conditions": timed,
            "phase": conditions.phase(timed),
            "reason": verdict.message if not previous.finished else previous.reason,
        }
    )
