"""The attempts of a job, as its status remembers them.

``status.attempt`` is bumped, and written, before anything of the new attempt exists. An attempt gets its entry in
``status.attempts`` when its trainer is first seen running; a trainer that ran and is gone was taken away, one that
never ran has still to be made. So the status and what exists determine the state, wherever the operator was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from visionrl.component import EXIT_CONFIGURATION
from visionrl.job import FailurePolicy, Job
from visionrl.status import Attempt, ComponentFailure, JobStatus
from visionrl_core.clock import moment, stamp
from visionrl_core.manifests.common import Ref
from visionrl_core.manifests.config import key_name
from visionrl_core.observed import Observed, TrainerRun
from visionrl_core.policies import failure, ledger
from visionrl_core.policies.failure import Failure

KEPT_ATTEMPTS = 10
KEY_REPLACED = "its key was replaced: all components start with the new one"


@dataclass(frozen=True)
class AttemptEnd:
    """How the job ended: condition, reason and message."""

    type: Literal["Complete", "Failed"]
    reason: str
    message: str


def live(status: JobStatus) -> Attempt | None:
    """The entry of the attempt that runs."""
    last = status.attempts[-1] if status.attempts else None
    return last if last is not None and last.number == status.attempt and last.ended is None else None


def restarting(status: JobStatus) -> Attempt | None:
    """The attempt that failed before the one that is about to run."""
    last = next((attempt for attempt in reversed(status.attempts) if attempt.ended is not None), None)
    planned = last is None or last.cause is None or last.cause in failure.PLANNED_CAUSES
    return None if planned else last


def settle(
    status: JobStatus, job: Job, observed: Observed, stop: str | None, now: datetime
) -> tuple[JobStatus, AttemptEnd | None]:
    """Record what became of the current attempt; the job's end where that decides it. ``stop``: why its pods are to be
    deleted, where they are."""
    run = observed.trainer(status.attempt)
    status = _begin(status, run, now)
    if run is not None and run.outcome == "Succeeded":
        return status, AttemptEnd("Complete", "TrainerSucceeded", "training is complete")
    policy = job.spec.failure_policy
    before = status.attempt
    status, outcome = _record_servers(status, policy, observed, now)
    if outcome is not None or status.attempt != before:
        return status, outcome
    if failed := _trainer_failure(status, run) or _hang(status, job, run, observed):
        entry = ledger.entry_of(failed, policy, now, instance=f"attempt {status.attempt}", ends=1)
        status, outcome = _record(status, failed, entry, policy, now)
        if outcome is not None:
            return status, outcome
        return next_attempt(status, failed.cause, entry.counted, now), None
    key = current_key(job, observed)
    if live(status) and key and run is not None and run.outcome == "Active" and run.key not in ("", key):
        return next_attempt(status, KEY_REPLACED, False, now), None
    if stop is not None and live(status):
        return next_attempt(status, stop, False, now), None
    return status, None


def current_key(job: Job, observed: Observed) -> str | None:
    """Digest of the key that components should have; None while there is no Secret: the executor makes a key, which
    nobody can decide, and pods follow."""
    return observed.key or "" if observed.has(Ref("Secret", key_name(job.name))) else None


def next_attempt(status: JobStatus, cause: str, counted: bool, now: datetime) -> JobStatus:
    """End the current attempt and make way for another."""
    status = end(status, cause, counted, now)
    return status.model_copy(update={"attempt": status.attempt + 1, "restarts": status.restarts + int(counted)})


def reopened(status: JobStatus, failures: Sequence[ComponentFailure] = ()) -> JobStatus:
    """The status of a finished job that trains again, from its last checkpoint. ``failures``: those of servers that
    were kept (:func:`visionrl_core.policies.ledger.forgiven`)."""
    return status.model_copy(
        update={
            "conditions": [each for each in status.conditions if each.type not in ("Complete", "Failed")],
            "attempt": status.attempt + 1,
            "restarts": 0,
            # The former attempts and failures, and the time that they took, belong to the former end.
            "attempts": [],
            "failures": list(failures),
            "failure_log": "",
            "active_seconds": 0,
            "active_since": None,
            "completion_time": None,
            "result": None,
        }
    )


def end(status: JobStatus, cause: str | None, counted: bool, now: datetime) -> JobStatus:
    """Write the end of the live attempt, if there is one."""
    last = live(status)
    if last is None:
        return status
    # A pod's clock may run ahead: an attempt never ends before it started.
    ended = stamp(max(now, moment(last.started)))
    done = status.progress.iteration
    closed = last.model_copy(update={"ended": ended, "cause": cause, "counted": counted, "iteration": done})
    return status.model_copy(update={"attempts": [*status.attempts[:-1], closed]})


def with_log_of_hung_trainer(status: JobStatus, observed: Observed) -> JobStatus:
    """Of a trainer that was ended because it did nothing, the log is known only once its container has stopped."""
    last, run = (status.attempts[-1] if status.attempts else None), observed.trainer(status.attempt)
    log = failure.last_lines(run.state.log) if run is not None else ""
    hung = last is not None and last.cause is not None and failure.NO_PROGRESS in last.cause
    if not hung or not log or log in status.failure_log:
        return status
    return status.model_copy(update={"failure_log": failure.last_lines(f"{status.failure_log}\n{log}")})


def _begin(status: JobStatus, run: TrainerRun | None, now: datetime) -> JobStatus:
    known = bool(status.attempts) and status.attempts[-1].number == status.attempt
    if known or run is None or (run.state.started is None and run.outcome == "Active"):
        return status
    entry = Attempt(number=status.attempt, started=stamp(run.state.started or now))
    return status.model_copy(update={"attempts": [*status.attempts, entry][-KEPT_ATTEMPTS:]})


def _trainer_failure(status: JobStatus, run: TrainerRun | None) -> Failure | None:
    if live(status) is None:
        return None
    if run is None:
        return Failure("trainer", None, "Deleted", "its Job was deleted")
    return failure.failure_of("trainer", run.state) if run.outcome == "Failed" else None


def _hang(status: JobStatus, job: Job, run: TrainerRun | None, observed: Observed) -> Failure | None:
    """A trainer that is alive and does nothing."""
    if live(status) is None or run is None or run.outcome != "Active" or run.deleting or run.state.started is None:
        return None
    limit = job.spec.lifecycle.progress_deadline_seconds
    if not observed.idle >= timedelta(seconds=limit):
        return None
    last = " ".join(filter(None, (observed.report.phase, observed.report.message))) if observed.report else "no report"
    return Failure("trainer", None, failure.NO_PROGRESS, f"nothing new for {limit} s after: {last}")


def _record_servers(
    status: JobStatus, policy: FailurePolicy, observed: Observed, now: datetime
) -> tuple[JobStatus, AttemptEnd | None]:
    """Task app and inference are restarted where they run, unless they fail too often or for good. A rule that names
    such a failure does what it says: the trainer's attempt ends, too, and another one follows."""
    for component, state in observed.servers:
        entry = ledger.new_end(status.failures, component, state, policy, now)
        if entry is not None:
            failed = failure.failure_of(component, state)
            status, outcome = _record(status, failed, entry, policy, now)
            if outcome is not None:
                return status, outcome
            if live(status) and failure.rule_for(policy, failed) is not None:
                return next_attempt(status, failed.cause, entry.counted, now), None
    return status, None


def _record(
    status: JobStatus, failed: Failure, entry: ComponentFailure, policy: FailurePolicy, now: datetime
) -> tuple[JobStatus, AttemptEnd | None]:
    """Enter a failure into the ledger; the job's end where it decides that."""
    failures = ledger.with_entry(status.failures, entry, policy, now)
    status = status.model_copy(update={"failures": failures})
    last_words = status.model_copy(update={"failure_log": failure.last_lines(failed.message)})
    if failure.action(policy, failed) == "Fail":
        return last_words, AttemptEnd("Failed", _failed_reason(failed), failed.cause)
    if entry.counted and ledger.too_many(failures, failed.component, policy, now):
        number = ledger.counted(failures, failed.component, policy, now)
        message = (
            f"{failed.cause}; failure {number} within {policy.window_seconds} s, {policy.max_restarts} are allowed"
        )
        return last_words, AttemptEnd("Failed", "MaxRestartsExceeded", message)
    return status, None


def _failed_reason(failed: Failure) -> str:
    return "ConfigurationError" if failed.exit_code == EXIT_CONFIGURATION else "FailurePolicy"
