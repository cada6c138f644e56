"""What is trained must not be lost without a word: whether the run folder is kept, and what becomes of its claim."""

from __future__ import annotations

from visionrl.job import Job
from visionrl.status import JobStatus
from visionrl_core.conditions import Finding
from visionrl_core.manifests.common import Owner, Ref
from visionrl_core.manifests.storage import made_claim
from visionrl_core.observed import Observed

MADE, LOST, MADE_ANEW = "ClaimMade", "ClaimLost", "ClaimMadeAnew"


def kept(job: Job, owner: Owner, status: JobStatus, observed: Observed, finished: bool) -> Finding:
    """The condition *ResultKept*. No trainer starts without the claim: after one ran, a missing claim is lost.
    The loss is reported before another one is made, in which training starts at iteration 0."""
    storage, claim, before = job.spec.storage, made_claim(job, owner), status.condition("ResultKept")
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


def claim_to_delete(job: Job, owner: Owner, observed: Observed) -> Ref | None:
    """The claim that goes at the end of the job (``retention.whenFinished``), while it is there."""
    claim = made_claim(job, owner)
    wanted = job.spec.storage.retention.when_finished == "Delete"
    return claim if wanted and claim is not None and not _gone(claim, observed) else None


def _gone(claim: Ref, observed: Observed) -> bool:
    return claim in observed.deleting or not observed.has(claim)


def _trained(status: JobStatus) -> str:
    done = status.progress.iteration
    return f"with it {done} iteration{'' if done == 1 else 's'}" if done else "with it what was trained"


def _finding(true: bool, reason: str, message: str) -> Finding:
    return Finding("ResultKept", true, reason, message)
