"""What is trained must not be lost without a word: whether the run folder is kept, what becomes of its claim, and where
copies of the trained policy go."""

from __future__ import annotations

from visionrl.job import Job
from visionrl.status import JobStatus, Result
from visionrl_core.conditions import Finding
from visionrl_core.manifests.common import Owner, Ref
from visionrl_core.manifests.export import export_job_name
from visionrl_core.manifests.storage import made_claim
from visionrl_core.observed import ExportRun, Observed

MADE, LOST, MADE_ANEW = "ClaimMade", "ClaimLost", "ClaimMadeAnew"


def kept(job: Job, owner: Owner, status: JobStatus, observed: Observed, finished: bool) -> Finding:
    """The condition *ResultKept*. No trainer starts without the claim: after one ran, a missing claim is lost.
    The loss is reported before another one is made, in which training starts at iteration 0."""
    storage, claim, before = job.spec.storage, made_claim(job, owner), status.condition("ResultKept")
    if observed.run_folder:
        return _finding(True, "RunFolder", observed.run_folder)
    if storage.ephemeral:
        return _finding(False, "Ephemeral", "what is trained is lost with the trainer's pod (spec.storage.ephemeral)")
    if claim is None:
        return _finding(True, "ClaimNamed", str(storage.run_claim))
    if finished and storage.retention.when_finished == "Delete" and _gone(claim, observed):
        return _finding(False, "ClaimDeleted", f"{claim} was deleted at the end (spec.storage.retention.whenFinished)")
    if claim in observed.deleting:
        fetch = f"visionrl fetch {job.name} gets what was trained so far"
        return _finding(False, "ClaimDeleting", f"{claim} goes when no pod uses it, and {_trained(status)}; {fetch}")
    if observed.has(claim):
        if before is not None and before.reason in (LOST, MADE_ANEW):
            return _finding(True, MADE_ANEW, f"{claim}, in place of one that was deleted while the job ran")
        return _finding(True, MADE, str(claim))
    if before is None or not (status.attempts or status.progress.iteration):
        return _finding(True, MADE, str(claim))
    follows = "" if finished else "; training starts at iteration 0 in a new one"
    return _finding(False, LOST, f"{claim} is gone, and {_trained(status)}{follows}")


def run_folder_is_gone(job: Job, owner: Owner, observed: Observed) -> bool:
    """Whether a job that has ended has nothing to train on from."""
    if observed.run_folder:
        return False
    claim = made_claim(job, owner)
    return job.spec.storage.ephemeral or (claim is not None and _gone(claim, observed))


def claim_to_delete(job: Job, owner: Owner, result: Result, observed: Observed) -> Ref | None:
    """The claim that goes at the end of the job (``retention.whenFinished``), while it is there. Copies come first."""
    claim = made_claim(job, owner)
    wanted = job.spec.storage.retention.when_finished == "Delete" and result.export in (None, "Exported")
    return claim if wanted and claim is not None and not _gone(claim, observed) else None


def result_of(job: Job, owner: Owner, status: JobStatus, observed: Observed, complete: bool) -> Result:
    """Where the trained policy lies. Copies are made of a complete job's; a Job that failed for good is left to people:
    deleting it starts another one."""
    claim, before = made_claim(job, owner), status.result or Result()
    kept = job.spec.storage.run_claim or (claim.name if claim and not _gone(claim, observed) else None)
    here = Result(claim=None if observed.run_folder else kept, version=before.version or status.policy.trained)
    if job.spec.storage.export is None or not complete:
        return here
    name = export_job_name(job, status.attempt)
    if before.export == "Exported" and before.export_job == name:
        return before.model_copy(update={"claim": kept})
    run = observed.exports.get(name, ExportRun())
    here = here.model_copy(update={"export": "Exporting", "export_job": name, "message": run.message})
    if run.outcome == "Succeeded":
        copied = {"export": "Exported", "message": "", "copies": list(run.copies)}
        return here.model_copy(update={**copied, "version": run.version or here.version})
    return here.model_copy(update={"export": "Failed"}) if run.outcome == "Failed" else here


def exported(result: Result) -> Finding | None:
    """The condition *Exported*; None where no copies are asked for."""
    if result.export is None:
        return None
    message = "; ".join(copy.to for copy in result.copies) or result.message
    reason = "ExportFailed" if result.export == "Failed" else result.export
    return Finding("Exported", result.export == "Exported", reason, message)


def _gone(claim: Ref, observed: Observed) -> bool:
    return claim in observed.deleting or not observed.has(claim)


def _trained(status: JobStatus) -> str:
    done = status.progress.iteration
    return f"with it {done} iteration{'' if done == 1 else 's'}" if done else "with it what was trained"


def _finding(true: bool, reason: str, message: str) -> Finding:
    return Finding("ResultKept", true, reason, message)
