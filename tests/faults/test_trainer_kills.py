"""Kill the trainer before any of its writes: it resumes, and has learned exactly what it would have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = ("checkpoint-every-1", "checkpoint-every-3", "warm-start")

pytestmark = pytest.mark.vision


def kills(scenario: str, folder: Path, first: int, stride: int, mode: str) -> list[dict[str, object]]:
    words = [sys.executable, "-m", "tests.faults.trainer_kills", scenario, folder, first, stride, mode]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "stride"), [("once", 16), ("twice", 32)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_trainer_killed_once_or_twice_loses_and_doubles_nothing(
    scenario: str, mode: str, stride: int, tmp_path: Path
) -> None:
    """Before some of its writes: ``make faults`` takes all, for an hour. ``twice``: the attempt that resumes is killed
    as well."""
    found = kills(scenario, tmp_path, first=1, stride=stride, mode=mode)
    assert len(found) * stride >= 100
    assert [kill for kill in found if kill["wrong"]] == []
