"""A short soak: what ``make soak`` does for 20 minutes, with exact logprobs in vLLM's place."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.vision
@pytest.mark.integration
def test_no_sample_is_lost_or_doubled_and_no_process_is_left_whatever_is_killed_or_frozen() -> None:
    command = [sys.executable, "-m", "tests.bench.soak", "--minutes", "2", "--seed", "3", "--inference", "exact"]
    soak = subprocess.run(command, capture_output=True, text=True, check=False)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert "0 lost, 0 doubled" in soak.stdout
    assert "orphans                0" in soak.stdout
