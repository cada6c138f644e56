"""``visionrl run`` with a task app that draws each decision's reward at random: ``FILE --runs DIR``.

Random weights earn nothing by playing, and a batch without a signal takes no update.
"""

from __future__ import annotations

import random
import sys
from typing import Any
from unittest import mock

from tests.support.exact_run import run_with
from visionrl.rollout import RewardSplit
from visionrl_taskapp.__main__ import main as serve
from visionrl_taskapp.rollouts import episode

TASK_APP = "--task-app"


def drawn(*decision: Any) -> RewardSplit:
    """In place of :func:`visionrl_taskapp.rollouts.rewards.decision_reward`."""
    return RewardSplit(event=random.random())


if __name__ == "__main__":
    if sys.argv[1:2] == [TASK_APP]:
        with mock.patch.object(episode, "decision_reward", drawn):
            sys.exit(serve([]))
    sys.exit(run_with("taskapp", "tests.support.rewarded_run", TASK_APP))
