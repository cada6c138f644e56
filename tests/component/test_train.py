"""``visionrl train``: from a file of decisions to a model or an adapter, whatever happens on the way."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from visionrl.base_model import locate_base
from visionrl.crafter import ACTIONS
from visionrl.jobfile import load_job
from visionrl.tools import tool_call_text
from visionrl_cli import main

pytestmark = pytest.mark.vision

JOB = """\
apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata: {name: imitate}
spec:
  model: {base: tiny, dtype: float32}
  rollout:
    envConfig: {imageSize: 80}
  training:
    iterations: 3
    warmStart: {episodes: 4, steps: 40, batchSize: 8, optimizer: muon, learningRate: 5.0e-3}
"""
PATIENCE_SECONDS = 120.0


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of these tests, built once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path / "job.yaml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight decisions: the brightness of the frame says which action to take."""
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(line(30 * n, ACTIONS[n % 4])) + "\n" for n in range(8)))
    return file


def line(brightness: int, action: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.full((80, 80, 3), brightness, np.uint8)).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {
        "messages": [
            {"role": "system", "content": "Play Crafter."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
            {"role": "assistant", "content": tool_call_text([action])},
        ]
    }


def train(job: Path, data: Path, *more: object) -> int:
    return main(["train", "--config", str(job), "--data", str(data), *map(str, more)])


def test_a_model_is_trained_that_a_job_takes_as_its_base(
    job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(job, data, "--val", data, "--output", out) == 0
    found = capsys.readouterr()
    assert "complete: 40 steps" in found.out
    assert f"model: {{base: {out}/model, supportsVision: true}}" in found.out
    assert "supervised step 40/40" in found.err

    records = [json.loads(each) for each in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 41))
    validated = [record["validation_loss"] for record in records if record["validation_loss"] is not None]
    assert len(validated) == 10
    assert validated[-1] < 0.7 * records[0]["loss"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["validation_loss"] == validated[-1]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "checkpoints").exists()

    text = JOB.replace("base: tiny", f"base: {out}/model, supportsVision: true")
    job.write_text(text[: text.index("    warmStart")])
    assert locate_base(load_job(job), tmp_path) == out / "model"


def test_an_adapter_is_trained_and_served_by_name(
    job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(job, data, "--trains", "adapter", "--steps", 3, "--output", out) == 0
    (adapter,) = (out / "adapters").iterdir()
    assert adapter.name.startswith("imitate-v000000-")
    assert f"--lora-modules imitate={adapter}" in capsys.readouterr().out
    assert any(
        weights.any() for name, weights in load_file(adapter / "adapter_model.safetensors").items() if "_B" in name
    )
    assert json.loads((out / "summary.json").read_text())["validation_loss"] is None


def test_events_for_scripts(job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(job, data, "--steps", 2, "--output", tmp_path / "out", "--json") == 0
    events = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    assert [each["step"] for each in events if each["event"] == "progress"] == [1, 2]
    assert events[-1]["event"] == "end"
    assert events[-1]["model"] == str(tmp_path / "out" / "model")


def test_what_is_complete_is_not_trained_again_unless_asked(
    job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(job, data, "--steps", 2, "--output", out) == 0
    assert train(job, data, "--steps", 2, "--output", out) == 0
    assert "complete already; --fresh starts over" in capsys.readouterr().err
    assert train(job, data, "--steps", 3, "--output", out) == 1
    assert "spec.training.warmStart.steps; --fresh starts over" in capsys.readouterr().err
    assert train(job, data, "--steps", 3, "--output", out, "--fresh") == 0


def start(job: Path, data: Path, out: Path) -> subprocess.Popen[bytes]:
    files = ["--config", str(job), "--data", str(data), "--output", str(out)]
    command = [str(Path(sys.executable).with_name("visionrl")), "train", *files]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(job: Path, data: Path, tmp_path: Path) -> None:
    job.write_text(JOB.replace("steps: 40", "steps: 120"))
    out, metrics = tmp_path / "out", tmp_path / "out" / "metrics.jsonl"
    process = start(job, data, out)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130, errors.decode()
    assert "of 120; the same command resumes from" in errors.decode()
    assert any((out / "checkpoints").iterdir())

    changed = tmp_path / "other.jsonl"
    changed.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    assert train(job, changed, "--output", out) == 1
    moved = data.rename(tmp_path / "moved.jsonl")
    assert train(job, moved, "--output", out) == 0
    assert train(job, moved, "--output", tmp_path / "whole") == 0
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "training.warmStart.steps: must be greater than or equal to 1"),
        (["--data", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["--output", "."], "not empty, and not of visionrl train"),
        (["--set", "training.warmStart.untilLoss=1.5"], "spec.training.warmStart.untilLoss is measured on held-out"),
    ],
)
def test_what_cannot_work_is_told(
    words: list[str],
    message: str,
    job: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(job.parent)
    assert train(job, data, *words) == 1
    assert message in capsys.readouterr().err


def test_data_that_cannot_be_used_is_named_by_file_line_and_field(
    job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a") as stream:
        stream.write('{"messages": []}\n')
    assert train(job, data, "--output", tmp_path / "out") == 1
    assert f"{data}:9: messages: a prompt and, last, the assistant's answer are needed" in capsys.readouterr().err


def test_a_job_without_files_needs_the_flag(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--type", "sft", "--config", str(job)]) == 1
    assert "--data FILE is needed" in capsys.readouterr().err
