"""configs/minigrid-tiny.yaml through the real components, shortened: another game takes the same way as Crafter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.learn.jobs import write_derived
from recipes.minigrid import JOB

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
SHORT = {
    "training.iterations": 1,
    "training.groupsPerIteration": 2,
    "training.groupSize": 4,
    "training.updatesPerIteration": 1,
    "training.warmStart.episodes": 30,
    "training.warmStart.steps": 60,
    "training.guards": {"maxInvalidRate": 1.0},  # after so short a warm start, many answers mean nothing
    "evaluation.episodes": 4,
    "algorithm.klCoefficient": 0.01,  # something to learn, also where all episodes earned the same
}
PATIENCE_SECONDS = 900.0


def test_the_second_game_trains_through_the_real_server(tmp_path: Path) -> None:
    file, output = tmp_path / "job.yaml", tmp_path / "output.log"
    write_derived(REPOSITORY / JOB, "minigrid-short", SHORT, file)
    command: list[str | Path] = [Path(sys.executable).with_name("visionrl"), "run", file, "--runs", tmp_path / "runs"]
    with output.open("wb") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, output.read_text()
    folder = tmp_path / "runs" / "minigrid-short"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["iterations"], summary["episodes"]) == (1, 8)
    assert summary["mismatch"]["max_abs"] <= 1e-4, "serving and training agree"
    for which in ("before", "after"):
        found = summary["evaluation"][which]
        assert len(found["returns"]) == 4
        assert set(found["rates"]) <= {"success"}, "the game's one event, none of Crafter's"
    assert "BabyAI-GoToRedBall-v0" in (folder / "report.html").read_text()
