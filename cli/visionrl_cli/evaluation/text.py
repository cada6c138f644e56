"""Errors and small texts of an evaluation."""

from __future__ import annotations

from visionrl.status import Score


class EvalError(Exception):
    """The evaluation cannot be made; the message is for the user."""


def signed(score: Score) -> str:
    """ "+1.10 [+0.78, +1.42]"."""
    return f"{score.mean:+.2f} [{score.low:+.2f}, {score.high:+.2f}]"


def verdict(gain: Score) -> str:
    """What an interval of a gain shows."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "not shown to differ"


def duration(seconds: float) -> str:
    """A time to wait, in the unit that it is told in.

    >>> duration(40), duration(600), duration(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
