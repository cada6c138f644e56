"""Status as short lines for people."""

from __future__ import annotations

from visionrl.status import JobStatus, Score
from visionrl_core.clock import moment


def progress_line(status: JobStatus) -> str:
    """ "iteration 3/10 · reward 2.31 · 84 episodes/min · …": the fields that are known."""
    progress, policy = status.progress, status.policy
    fields = [f"iteration {progress.iteration}/{progress.total}"] if progress.total else []
    if progress.reward is not None:
        fields.append(f"reward {progress.reward:.2f}")
    if progress.episodes_per_minute is not None:
        fields.append(f"{progress.episodes_per_minute:.0f} episodes/min")
    if evaluation := evaluation_text(status):
        fields.append(evaluation)
    if progress.evaluation.seeds and status.phase == "Running":
        fields.append(f"evaluating {progress.evaluation.played}/{progress.evaluation.seeds}")
    if policy.serving:
        fields.append(f"serving {policy.serving}")
    if progress.mismatch_kl is not None:
        fields.append(f"mismatch KL {progress.mismatch_kl:.1e}")
    if progress.eta and not status.finished:
        fields.append(f"ETA {moment(progress.eta).astimezone():%H:%M}")
    return " · ".join(fields)


def evaluation_text(status: JobStatus) -> str:
    """ "evaluation 1.94 → 2.61 [2.40, 2.83]"."""
    evaluation = status.progress.evaluation
    before, latest = evaluation.before, evaluation.latest
    if latest is None:
        return ""
    if before is None or evaluation.latest_iteration == 0:
        return f"evaluation {score_text(latest)}"
    return f"evaluation {before.mean:.2f} → {score_text(latest)}"


def score_text(score: Score) -> str:
    """ "2.61 [2.40, 2.83]": mean and 95 % interval."""
    return f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"
