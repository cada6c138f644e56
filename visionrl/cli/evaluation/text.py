"""Errors and small texts of an evaluation."""

from __future__ import annotations

from visionrl.status import Score


class EvalError(Exception):
    """What keeps an evaluation from being made; the message is for the user."""


def score_text(score: Score) -> str:
    """ "2.61 [2.40, 2.83]": mean and 95 % interval."""
    return f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"


def signed(score: Score) -> str:
    """ "+1.10 [+0.78, +1.42]"."""
    return f"{score.mean:+.2f} [{score.low:+.2f}, {score.high:+.2f}]"
