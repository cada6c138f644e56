"""Supervised training: it learns, it resumes exactly, and what it leaves behind is a model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.trainer.conftest import IMAGE_SIZE
from visionrl.images import frame_hash
from visionrl.job import Lora, WarmStart
from visionrl.tools import ACTIONS, tool_call_text
from visionrl_trainer import sft
from visionrl_trainer.model import Policy
from visionrl_trainer.publish import MANIFEST
from visionrl_trainer.teacher import Demonstration, Demonstrations

pytestmark = pytest.mark.vision


@pytest.fixture(scope="module")
def data() -> Demonstrations:
    """The brightness of a frame says which action to take."""
    images, decisions = {}, []
    for n in range(8):
        frame = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 30 * n, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        digest = frame_hash(frame)
        images[digest] = buffer.getvalue()
        messages = (
            {"role": "system", "content": "Play Crafter."},
            {"role": "user", "content": [{"type": "image", "sha256": digest}]},
        )
        decisions.append(Demonstration(messages, (digest,), tool_call_text([ACTIONS[n % 4]])))
    return Demonstrations(decisions, decisions[:2], images)


def settings(**changes: object) -> WarmStart:
    known = {"episodes": 1, "steps": 30, "batch_size": 8, "optimizer": "muon", "learning_rate": 5e-3}
    return WarmStart(**{**known, **changes})  # type: ignore[arg-type]


def fresh(directory: Path, adapter: bool = False) -> Policy:
    policy = Policy.load(directory, "float32", torch.device("cpu"))
    if adapter:
        policy.add_adapter(Lora(r=4, alpha=8), seed=0)
    return policy


def train(policy: Policy, data: Demonstrations, wanted: WarmStart, checkpoint: Path) -> list[sft.SftReport]:
    reports: list[sft.SftReport] = []
    sft.train(policy, data, wanted, IMAGE_SIZE, 0, checkpoint, reports.append)
    return reports


def vision_weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.model.visual.parameters()]).clone()


def test_the_prompt_is_tokenised_as_the_processor_does(tiny_directory: Path, data: Demonstrations) -> None:
    policy = fresh(tiny_directory)
    sample = sft.Tokens(policy, None, 81).sample(data.training[3])
    text = policy.processor.apply_chat_template(
        [
            {"role": "system", "content": "Play Crafter."},
            {"role": "user", "content": [{"type": "image"}]},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    picture = Image.open(io.BytesIO(data.images[data.training[3].images[0]]))
    expected = policy.processor(text=[text], images=[picture])["input_ids"][0]
    assert list(sample.prompt_ids) == list(expected)
    decoded = policy.processor.tokenizer.decode(list(sample.completion_ids))
    assert decoded == tool_call_text([ACTIONS[3]]) + policy.processor.tokenizer.eos_token


# An adapter on random weights has little to work with.
@pytest.mark.parametrize(("trains", "share"), [("all", 0.8), ("language_model", 0.8), ("adapter", 0.99)])
def test_the_loss_falls_and_only_what_should_changes(
    trains: str, share: float, tiny_directory: Path, data: Demonstrations, tmp_path: Path
) -> None:
    policy = fresh(tiny_directory, adapter=trains == "adapter")
    vision = vision_weights(policy)
    embeddings = policy.model.model.language_model.embed_tokens.weight.detach().clone()
    first = sft.validate(policy, [sft.Tokens(policy, None, 81).sample(d) for d in data.validation], data.images)
    last = train(policy, data, settings(trains=trains), tmp_path / "c.pt")[-1].validation_loss
    assert last is not None
    assert last < share * first
    assert torch.equal(vision_weights(policy), vision) == (trains != "all")
    assert torch.equal(policy.model.model.language_model.embed_tokens.weight, embeddings) == (trains == "adapter")


def test_an_interrupted_training_ends_with_the_same_weights(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "CHECKPOINT_EVERY", 4)
    wanted = settings(steps=7)
    whole = fresh(tiny_directory)
    train(whole, data, wanted, tmp_path / "whole.pt")

    class Interrupted(Exception):
        pass

    def stop(report: sft.SftReport) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        sft.train(fresh(tiny_directory), data, wanted, IMAGE_SIZE, 0, tmp_path / "cut.pt", stop)
    resumed = fresh(tiny_directory)
    reports = train(resumed, data, wanted, tmp_path / "cut.pt")
    assert [report.step for report in reports] == [7]
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_exported_model_is_the_trained_one_with_a_manifest(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path
) -> None:
    policy = fresh(tiny_directory)
    train(policy, data, settings(steps=3), tmp_path / "c.pt")
    sft.export(policy, tiny_directory, tmp_path / "base")
    again = fresh(tmp_path / "base")
    samples = [sft.Tokens(policy, None, 81).sample(d) for d in data.training]
    assert sft.validate(again, samples, data.images) == pytest.approx(
        sft.validate(policy, samples, data.images), abs=1e-5
    )
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert {MANIFEST, "config.json", "model.safetensors", "tokenizer.json"} <= names


def test_pixels_that_are_not_those_of_the_hash_are_refused(tiny_directory: Path, data: Demonstrations) -> None:
    policy = fresh(tiny_directory)
    digest, other = list(data.images)[:2]
    swapped = {**data.images, digest: data.images[other]}
    with pytest.raises(ValueError, match="hash to"):
        sft.decision_loss(policy, [sft.Tokens(policy, None, 81).sample(data.training[0])], swapped)
