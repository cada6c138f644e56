"""One Parquet file of ``visionrl filter --format trl`` trains with TRL's own SFTTrainer as with ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.inference import tiny_job
from tests.support.trl_environment import NoNetwork, trl_python
from tests.unit.data.test_reference_traces import database, record
from visionrl_cli import main

pytestmark = [pytest.mark.slow]

STEP = Path(__file__).parents[1] / "support" / "trl_step.py"
WITHOUT_TOOLS: dict[str, Any] = {"request_params": {"raw_params": {"tools": []}}}
"""TRL's trainer puts no tools into a prompt with images."""


def test_trl_understands_the_file_as_our_trainer_does(tmp_path: Path) -> None:
    try:
        python = trl_python()
    except NoNetwork as error:
        pytest.skip(f"TRL cannot be installed, no package index can be reached: {error}")
    traces = database(tmp_path, [[record(shade, **WITHOUT_TOOLS) for shade in (0, 80)], [record(160, **WITHOUT_TOOLS)]])
    words = [str(traces), "--output-dir", str(tmp_path / "data"), "--format", "trl", "--val", "0.0"]
    assert main(["filter", *words]) == 0
    data = tmp_path / "data" / "train.parquet"
    prompt = {"maxTokens": 16, "systemPrompt": "Play."}
    job = tiny_job(rollout={"envConfig": {"imageSize": 64}, "policyConfig": prompt})
    (tmp_path / "job.yaml").write_text(job.model_dump_json(by_alias=True, exclude_unset=True))
    output = tmp_path / "ours"
    words = ["--config", str(tmp_path / "job.yaml"), "--data", str(data), "--output", str(output)]
    assert main(["train", *words, "--trains", "all", "--steps", "60", "--batch-size", "3"]) == 0
    result = subprocess.run(
        [python, STEP, output / "model", data, tmp_path / "trl"],
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["rows"], found["image_tokens"]) == (3, 3 * 16)
    # What our trainer has learned from the file, TRL finds likely: prompts, frames and answers are the same to both.
    # An untrained model's loss is 5.9. (TRL asks for one more token, the line's end after the answer.)
    assert found["loss"] < 2
