"""What ``visionrl train`` makes is served by real vLLM, which answers as the trainer computes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.inference import KEY, InferenceServer, chat_body, random_frame, sampled, tiny_job
from tests.support.trainer import StandInTrainer
from visionrl.crafter import ACTIONS
from visionrl.frames import frame_hash
from visionrl.job import Lora
from visionrl.tools import tool_call_text
from visionrl_cli import main
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Sample

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

FRAME = random_frame(5)
ROLLOUT = {"envConfig": {"imageSize": 144}, "policyConfig": {"maxTokens": 16, "systemPrompt": "Play Crafter."}}


def data_url(seed: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(random_frame(seed)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def line(seed: int) -> str:
    prompt = [{"type": "image_url", "image_url": {"url": data_url(seed)}}]
    messages = [
        {"role": "system", "content": "Play Crafter."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": tool_call_text([ACTIONS[seed]])},
    ]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in ``full/model`` and an adapter on it below ``adapter/adapters``."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.jsonl").write_text("".join(map(line, range(6))))
    for output, model, flags in (
        ("full", {"base": "tiny"}, ["--optimizer", "muon"]),
        ("adapter", {"base": f"{folder}/full/model", "supportsVision": True}, ["--trains", "adapter"]),
    ):
        job = tiny_job(model={"dtype": "float32", **model}, rollout=ROLLOUT)
        (folder / "job.yaml").write_text(job.model_dump_json(by_alias=True, exclude_unset=True))
        command = ["train", "--config", str(folder / "job.yaml"), "--data", str(folder / "train.jsonl")]
        assert main([*command, "--steps", "30", *flags, "--output", str(folder / output)]) == 0
    return folder


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    model = {"base": f"{trained}/full/model", "supportsVision": True, "dtype": "float32"}
    with StandInTrainer(trained / "adapter", KEY) as trainer:
        running = InferenceServer(tiny_job(model=model), tmp_path_factory.mktemp("server"), trainer.url)
        try:
            running.start()
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("trains", ["all", "adapter"])
def test_the_server_answers_as_what_was_trained(trains: str, trained: Path, server: InferenceServer) -> None:
    policy = Policy.load(trained / "full" / "model", "float32", torch.device("cpu"))
    model = "base"
    if trains == "adapter":
        (folder,) = (trained / "adapter" / "adapters").iterdir()
        model = folder.name
        policy.add_adapter(Lora(), seed=1)
        policy.load_adapter(folder)
    banned = {str(token): -100 for token in policy.banned_ids}
    with server.client() as client:
        prompt, ids, logprobs = sampled(
            client.post("/v1/chat/completions", json=chat_body(model, FRAME, logit_bias=banned))
        )
    sample = Sample(tuple(prompt), tuple(ids), tuple(logprobs), (frame_hash(FRAME),), model)
    with torch.no_grad():
        computed, _ = policy.logprobs([sample], {frame_hash(FRAME): policy.encode_images([FRAME])[0]}, 1.0)
    assert computed.tolist() == pytest.approx(logprobs, abs=1e-4)


def test_what_was_trained_is_scored_by_its_folder(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(trained / "adapter"), "--env", "crafter", "--seeds", "0,1", "--turns", "2", "--json"]
    assert main(["eval", *words]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    (adapter,) = (trained / "adapter" / "adapters").iterdir()
    assert found["policy"] == adapter.name
    assert found["settings"]["base"] == str(trained / "full" / "model")
    assert [episode["turns"] for episode in found["episodes"]] == [2, 2]
