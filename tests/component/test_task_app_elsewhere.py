"""``visionrl run`` with a task app that runs already: the example's server, of the standard library alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.component.taskapp.test_conformance import SERVER
from tests.support.jobs import document
from tests.support.taskapp import KEY, taskapp_command

pytestmark = [pytest.mark.integration, pytest.mark.vision]

PATIENCE_SECONDS = 600.0


def test_a_job_trains_on_a_server_that_runs_already(tmp_path: Path) -> None:
    with taskapp_command([sys.executable, str(SERVER)], tmp_path, {}) as app:
        short = {
            "model.dtype": "float32",
            "taskApp": {"url": app.url, "keySecret": {"name": "lamp", "key": "key"}},
            "rollout.envName": "lamp",
            "rollout.envConfig": {"imageSize": 64},
            "rollout.policyConfig": {"maxLlmCalls": 2, "maxTokens": 8, "systemPrompt": "Play"},
            "training": {"iterations": 1, "groupsPerIteration": 1, "groupSize": 2, "guards": {"maxInvalidRate": 1.0}},
            "evaluation.episodes": 0,
        }
        file, runs = tmp_path / "job.json", tmp_path / "runs"
        file.write_text(json.dumps(document(short)))
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.exact_run", str(file), "--runs", str(runs)],
            env=os.environ | {"VISIONRL_TASKAPP_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((runs / "demo" / "summary.json").read_text())["episodes"] == 2
    assert not (runs / "demo" / "logs" / "taskapp.log").exists(), "the job starts none"
    conditions = {each["type"]: each for each in json.loads((runs / "demo" / "status.json").read_text())["conditions"]}
    assert conditions["Complete"]["status"] == "True"
