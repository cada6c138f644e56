"""Reinforcement learning of a vision model from the command line: the reference system's two tests, by their names.

A job deploys a task app of its own. `TASK_APP_WARMUP_TIMEOUT` is the longest time, in seconds, that it may take to be
ready.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.api_server import api_server
from tests.support.inference import InferenceServer, tiny_job
from tests.support.taskapp import taskapp
from visionrl.frames import decode_png, frame_hash
from visionrl.jobfile import parse_job
from visionrl_cli import main

pytestmark = [pytest.mark.slow, pytest.mark.vision, pytest.mark.integration]

PUBLISHED = Path(__file__).parents[2] / "unit" / "reference" / "testdata" / "rl_vision.toml"
"""The reference's file for Qwen3-VL-4B on two GPUs."""
JOB = "case"
WARM_UP_SECONDS = float(os.environ.get("TASK_APP_WARMUP_TIMEOUT", 600))

TINY = {
    "model.base": "tiny",
    "model.dtype": "float32",
    "inference.gpu": "null",
    "trainer.gpu": "null",
    "inference.vllm.maxModelLen": "512",
    "rollout.envConfig.imageSize": "144",
    "rollout.policyConfig.maxTokens": "16",
    "rollout.policyConfig.systemPrompt": "Play Crafter.",
}
"""The file's job on a machine without a GPU: a random Qwen3-VL of two layers in place of the 4B."""


def test_cli_train_rl_vision_qwen3vl4b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Submit, created, deployed, warm."""
    monkeypatch.setenv("NO_PROXY", "*")
    with api_server(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        assert main(["train", "--type", "rl", "--config", str(PUBLISHED), "--context", "test", "--no-poll"]) == 0
        spec = parse_job(json.dumps(cluster.objects.get("visionrljobs", JOB))).spec
    assert f"{JOB} is started" in capsys.readouterr().err
    assert spec.model.base == "Qwen/Qwen3-VL-4B-Instruct"
    assert (spec.rollout.policy_config.use_vision, spec.rollout.policy_config.image_only_mode) == (True, True)
    assert spec.inference.gpu
    assert spec.trainer.gpu
    assert (spec.inference.gpu.count, spec.trainer.gpu.count) == (1, 1)

    runs = ["--runs", str(tmp_path / "runs")]
    values = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", "--type", "rl", "--config", str(PUBLISHED), "--no-poll", *runs, *values]) == 0
    try:
        deadline = time.monotonic() + WARM_UP_SECONDS
        while "TaskAppReady" not in (conditions := true_conditions(runs, capsys)):
            assert time.monotonic() < deadline, conditions
            time.sleep(0.5)
        assert "Accepted" in conditions
        assert main(["jobs", "list", *runs]) == 0
        assert JOB in capsys.readouterr().out
    finally:
        family = [each for each in psutil.process_iter() if str(tmp_path) in " ".join(command_line(each))]
        ended = main(["jobs", "cancel", JOB, *runs])
    assert ended == 0
    assert family
    assert not psutil.wait_procs(family, timeout=60)[1], "a cancelled job left processes"


def true_conditions(runs: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    capsys.readouterr()
    assert main(["jobs", "get", JOB, "--json", *runs]) == 0
    record = json.loads(capsys.readouterr().out)
    return {each["type"] for each in record["status"].get("conditions", ()) if each["status"] == "True"}


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_task_app_vision_support(tmp_path: Path) -> None:
    """A rollout from images alone, in the reference client's words, with a vision model behind a real server."""
    for name in ("inference", "taskapp"):
        (tmp_path / name).mkdir()
    server = InferenceServer(tiny_job(), tmp_path / "inference", "http://127.0.0.1:9")
    try:
        server.start()
        with taskapp(tmp_path / "taskapp", VISIONRL_INFERENCE_URL=server.url) as app, app.client() as client:
            assert client.get("/health").json()["healthy"] is True
            answer = client.post("/rollout", json=vision_request(server.url)).raise_for_status().json()
    finally:
        server.kill()
    assert answer["aborted"] is False, answer["abort_message"]
    (trajectory,) = answer["trajectories"]
    assert trajectory["length"] == len(trajectory["steps"]) == 2
    for decision in trajectory["decisions"]:
        (shown,) = decision["images"]
        frame = decode_png(base64.b64decode(answer["images"][shown]))
        assert frame.shape == (144, 144, 3)
        assert frame_hash(frame) == shown
        (user,) = (each for each in decision["messages"] if each["role"] == "user")
        assert [part["type"] for part in user["content"]] == ["image"], "image only: no state as text"
        ids = decision["prompt_token_ids"]
        assert max(map(ids.count, ids)) == (144 // 16) ** 2, "the server saw the frame"
    assert "policy.config.provider" in answer["pipeline_metadata"]["unused"]


def vision_request(inference_url: str) -> dict[str, Any]:
    policy = {
        "provider": "vllm",
        "model": "base",
        "inference_url": inference_url,
        "use_vision": True,
        "image_only_mode": True,
        "temperature": 0.6,
        "max_tokens": 16,
        "system_prompt": "Play Crafter.",
        "history_turns": 0,
    }
    return {
        "run_id": "vision-1",
        "mode": "rl",
        "env": {"env_name": "crafter", "config": {"difficulty": "normal", "image_size": 144}, "seed": 0},
        "policy": {"policy_name": "crafter-react", "config": policy},
        "ops": ["agent", "env"] * 2,
        "record": {"trajectories": True, "logprobs": True, "images": True, "messages": True},
        "on_done": "reset",
        "safety": {"max_ops": 100, "max_time_s": 600.0},
    }
