"""``visionrl run`` with a task app that draws each decision's reward at random: ``FILE --runs DIR``.

Random weights earn nothing by playing, and a batch without a signal takes no update.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from visionrl.rollout import RewardSplit
from visionrl_core.manifests.common import Manifest
from visionrl_local.container import container_argv
from visionrl_local.run import RunOptions, run
from visionrl_taskapp.__main__ import main as serve
from visionrl_taskapp.rollouts import episode

TASK_APP = "--task-app"


def drawn(*decision: Any) -> RewardSplit:
    """In place of :func:`visionrl_taskapp.rollouts.rewards.decision_reward`."""
    return RewardSplit(event=random.random())


def argv(container: Manifest) -> list[str]:
    if container["name"] == "taskapp":
        return [sys.executable, "-m", "tests.support.rewarded_run", TASK_APP]
    return container_argv(container)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args()
    return run(RunOptions(options.file, options.runs, argv=argv))


if __name__ == "__main__":
    if sys.argv[1:2] == [TASK_APP]:
        with mock.patch.object(episode, "decision_reward", drawn):
            sys.exit(serve([]))
    sys.exit(main())
