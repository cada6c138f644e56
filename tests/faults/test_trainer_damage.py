"""Files that are not essential never end a run, and cost nothing that was learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vision


def test_damage_to_what_is_not_essential_ends_no_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.trainer_damage", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= 12
    assert [each for each in found if each["code"] != 0 or not each["same"]] == []
