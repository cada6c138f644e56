"""The example of an environment of a user's own, installed as its page says, through the real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.component.taskapp.test_environments import play
from tests.support.taskapp import taskapp
from visionrl.jobfile import load_job

EXAMPLE = Path(__file__).parents[3] / "examples" / "own-environment"


def test_the_example_is_installed_and_played(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = ["install", "-qq", "--no-deps", "--no-build-isolation", "--target", str(site), str(EXAMPLE)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    job = load_job(EXAMPLE / "job.yaml")
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json(by_alias=True))
    config = job.spec.rollout.env_config.model_dump(exclude={"difficulty"})
    with taskapp(tmp_path, VISIONRL_JOB=str(file), PYTHONPATH=str(site)) as app:
        with app.client() as client:
            info = client.get("/task_info").json()
        assert (info["environment"], info["achievements"]) == ("treasure", ["treasure"])
        assert [score["direction"] for score in info["scores"]] == ["up", "down"]
        found = play(app, "treasure", "scripted", config)
        assert (found.metrics.mean_return, found.metrics.outcome_score) == (1.0, 1.0)
        assert found.metrics.scores["steps"] == found.metrics.num_steps
        assert found.trajectories[0].final["walker"] == found.trajectories[0].final["treasure"]
