"""Supervised training: it learns, it resumes exactly, and what it leaves behind is a model."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.unit.trainer.conftest import IMAGE_SIZE
from visionrl.adapters import MANIFEST
from visionrl.component import ConfigurationError
from visionrl.crafter import ACTIONS
from visionrl.frames import frame_hash
from visionrl.job import EnvSettings, JobSpec, Lora, PolicyModel, Rollout, Training, WarmStart
from visionrl.tools import tool_call_text
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.sft import train as sft
from visionrl_trainer.sft.teacher import Demonstration, Demonstrations
from visionrl_trainer.sft.tokens import Tokens
from visionrl_trainer.state.runfolder import SftFolder

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


def spec(**changes: object) -> JobSpec:
    known = {"episodes": 1, "steps": 30, "batch_size": 8, "optimizer": "muon", "learning_rate": 5e-3}
    warm_start = WarmStart(**{**known, **changes})  # type: ignore[arg-type]
    return JobSpec(
        model=PolicyModel(base="tiny", dtype="float32"),
        rollout=Rollout(env_config=EnvSettings(image_size=IMAGE_SIZE)),
        training=Training(iterations=1, warm_start=warm_start),
    )


def fresh(directory: Path, adapter: bool = False, dropout: float = 0.0) -> Policy:
    policy = Policy.load(directory, "float32", torch.device("cpu"))
    if adapter:
        policy.add_adapter(Lora(r=4, alpha=8, dropout=dropout), seed=0)
    return policy


def train(policy: Policy, data: Demonstrations, wanted: JobSpec, folder: Path) -> list[sft.SftReport]:
    reports: list[sft.SftReport] = []
    sft.train(policy, data, wanted, SftFolder(folder), reports.append)
    return reports


def weights(policy: Policy) -> torch.Tensor:
    owner = policy.peft or policy.model
    return torch.cat([parameter.detach().flatten() for parameter in owner.parameters()]).clone()


def vision_weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.model.visual.parameters()]).clone()


def test_the_prompt_is_tokenised_as_the_processor_does(tiny_directory: Path, data: Demonstrations) -> None:
    policy = fresh(tiny_directory)
    sample = Tokens(policy, None, 81).sample(data.training[3])
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
    image_features = vision_weights(policy)
    embeddings = policy.model.model.language_model.embed_tokens.weight.detach().clone()
    first = sft.validate(policy, [Tokens(policy, None, 81).sample(d) for d in data.validation], data.images)
    assert first is not None
    last = train(policy, data, spec(trains=trains), tmp_path)[-1].validation_loss
    assert last is not None
    assert last < share * first
    assert torch.equal(vision_weights(policy), image_features) == (trains != "all")
    assert torch.equal(policy.model.model.language_model.embed_tokens.weight, embeddings) == (trains == "adapter")


@pytest.mark.parametrize(("trains", "decay"), [("all", None), ("all", 0.9), ("adapter", None)])
def test_an_interrupted_training_ends_with_the_same_weights(
    trains: str, decay: float | None, tiny_directory: Path, data: Demonstrations, tmp_path: Path
) -> None:
    """Whether it was asked to stop between two reports or killed after a checkpoint, and with dropout, too."""
    wanted, adapter = spec(steps=20, trains=trains, average_decay=decay), trains == "adapter"
    whole = fresh(tiny_directory, adapter, dropout=0.1)
    train(whole, data, wanted, tmp_path / "whole")

    folder = SftFolder(tmp_path / "cut")
    seen: list[sft.SftReport] = []
    with pytest.raises(sft.Stopped):
        sft.train(
            fresh(tiny_directory, adapter, dropout=0.1), data, wanted, folder, seen.append, lambda: len(seen) == 4
        )

    class Killed(Exception):
        pass

    def killed(report: sft.SftReport) -> None:
        if report.step == 11:  # the last checkpoint is that of step 10
            raise Killed

    with pytest.raises(Killed):
        sft.train(fresh(tiny_directory, adapter, dropout=0.1), data, wanted, folder, killed)
    resumed = fresh(tiny_directory, adapter, dropout=0.1)
    reports = train(resumed, data, wanted, tmp_path / "cut")
    assert [report.step for report in reports] == list(range(11, 21))
    assert [record["step"] for record in folder.metrics.records()] == [1, 2, 3, 4, *range(6, 21)]
    assert torch.equal(weights(resumed), weights(whole))


def test_the_average_of_the_steps_weights_is_kept_and_validated(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path
) -> None:
    policy = fresh(tiny_directory)
    seen = [weights(policy)]
    reports: list[sft.SftReport] = []

    def report(latest: sft.SftReport) -> None:
        seen.append(weights(policy))
        reports.append(latest)

    sft.train(policy, data, spec(steps=4, average_decay=0.3), SftFolder(tmp_path), report)
    expected = seen[0]
    for step, now in enumerate(seen[1:], 1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now
    torch.testing.assert_close(weights(policy), expected)
    assert not torch.equal(weights(policy), seen[-1])
    held_out = [Tokens(policy, None, 81).sample(demonstration) for demonstration in data.validation]
    assert reports[-1].validation_loss == sft.validate(policy, held_out, data.images)


def test_a_training_ends_at_the_loss_that_is_asked_for_interrupted_or_not(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path
) -> None:
    known = [r.validation_loss for r in train(fresh(tiny_directory), data, spec(), tmp_path / "all")]
    half_way = known[14]  # of 30 steps
    assert half_way is not None
    wanted = spec(until_loss=half_way)
    whole = fresh(tiny_directory)
    reports = train(whole, data, wanted, tmp_path / "whole")
    assert (reports[-1].step, reports[-1].steps) == (len(reports), len(reports))
    assert len(reports) <= 15
    reached = [r.validation_loss is not None and r.validation_loss <= half_way for r in reports]
    assert reached == [False] * (len(reports) - 1) + [True]

    for _ in range(len(reports) - 1):
        with pytest.raises(sft.Stopped):
            sft.train(
                fresh(tiny_directory), data, wanted, SftFolder(tmp_path / "cut"), lambda report: None, lambda: True
            )
    resumed = fresh(tiny_directory)
    assert [report.step for report in train(resumed, data, wanted, tmp_path / "cut")] == [len(reports)]
    assert torch.equal(weights(resumed), weights(whole))


def test_a_loss_that_is_no_number_ends_nothing(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "validate", lambda *arguments: float("nan"))
    assert train(fresh(tiny_directory), data, spec(steps=3, until_loss=1e9), tmp_path)[-1].step == 3


@pytest.mark.parametrize(
    ("batch_size", "held_out", "every"),
    [(32, 384, 60), (32, 100, 30), (256, 384, 30), (8, 384, 180)],
)
def test_measuring_the_loss_takes_about_a_tenth_of_the_time(batch_size: int, held_out: int, every: int) -> None:
    settings = WarmStart(episodes=2, steps=3000, until_loss=1.0, batch_size=batch_size)
    assert sft.validation_pace(settings, held_out, every_report=30) == every


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizers.pt", "state.json"])
def test_a_training_resumes_from_the_newest_whole_checkpoint(
    file: str, tiny_directory: Path, data: Demonstrations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = spec(steps=8)
    whole = fresh(tiny_directory)
    train(whole, data, wanted, tmp_path / "whole")
    folder, seen = SftFolder(tmp_path / "cut"), list[sft.SftReport]()
    with pytest.raises(sft.Stopped):
        sft.train(fresh(tiny_directory), data, wanted, folder, seen.append, lambda: len(seen) == 5)
    older, newest = sorted(folder.checkpoints.iterdir())
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    resumed = fresh(tiny_directory)
    assert train(resumed, data, wanted, tmp_path / "cut")[0].step == int(older.name.removeprefix("step-")) + 1
    assert f"checkpoint {newest.name} is damaged and passed over: {newest.name}: {file} is damaged" in caplog.text
    assert torch.equal(weights(resumed), weights(whole))


def test_a_training_without_a_whole_checkpoint_starts_over(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SftFolder(tmp_path)
    with pytest.raises(sft.Stopped):
        sft.train(fresh(tiny_directory), data, spec(steps=3), folder, lambda report: None, lambda: True)
    (only,) = folder.checkpoints.iterdir()
    (only / "weights.safetensors").write_bytes(b"")
    assert [report.step for report in train(fresh(tiny_directory), data, spec(steps=3), tmp_path)] == [1, 2, 3]
    assert "the supervised training starts over" in caplog.text


def test_a_training_does_not_go_on_with_other_data(tiny_directory: Path, data: Demonstrations, tmp_path: Path) -> None:
    wanted, folder = spec(), SftFolder(tmp_path)
    with pytest.raises(sft.Stopped):
        sft.train(
            fresh(tiny_directory), replace(data, digest="a"), wanted, folder, lambda report: None, stop=lambda: True
        )
    with pytest.raises(ConfigurationError, match=r"not what the first 1 steps learned from.*checkpoints"):
        train(fresh(tiny_directory), replace(data, digest="b"), wanted, tmp_path)


def test_a_diverged_training_says_what_to_change(tiny_directory: Path, data: Demonstrations, tmp_path: Path) -> None:
    policy = fresh(tiny_directory)
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ConfigurationError, match=r"lower training\.warmStart\.learningRate"):
        train(policy, data, spec(), tmp_path)


def test_micro_batches_leave_the_training_as_it_is(tiny_directory: Path, data: Demonstrations, tmp_path: Path) -> None:
    wanted = spec(steps=3, optimizer="adamw")
    small = wanted.model_copy(update={"training": wanted.training.model_copy(update={"micro_batch_size": 3})})
    one, other = fresh(tiny_directory), fresh(tiny_directory)
    losses = [[report.loss for report in train(one, data, wanted, tmp_path / "one")]]
    losses.append([report.loss for report in train(other, data, small, tmp_path / "other")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order() -> None:
    epochs = [[i for step in range(4 * e, 4 * e + 4) for i in sft.batch_indices(12, 3, 5, step)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert sft.batch_indices(2, 5, 0, 0)[4] in (0, 1)


def test_steps_that_bfloat16_rounds_away_add_up(tiny_directory: Path, data: Demonstrations, tmp_path: Path) -> None:
    """All weights are kept in float32, whatever the precision of the computation; the model is written in that."""
    policy = Policy.load(tiny_directory, "bfloat16", torch.device("cpu"), full=True)
    before = weights(policy)
    train(policy, data, spec(steps=2, learning_rate=1e-6), tmp_path)
    moved = (weights(policy) != before).double().mean().item()
    rounded = (weights(policy).bfloat16() != before.bfloat16()).double().mean().item()
    assert moved > 0.5
    assert rounded < 0.1
    sft.export(policy, tiny_directory, tmp_path / "model")
    assert {weight.dtype for weight in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.bfloat16}


def test_the_exported_model_is_the_trained_one_with_a_manifest(
    tiny_directory: Path, data: Demonstrations, tmp_path: Path
) -> None:
    policy = fresh(tiny_directory)
    train(policy, data, spec(steps=3), tmp_path)
    sft.export(policy, tiny_directory, tmp_path / "base")
    again = fresh(tmp_path / "base")
    samples = [Tokens(policy, None, 81).sample(d) for d in data.training]
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
        sft.decoded([Tokens(policy, None, 81).sample(data.training[0])], swapped)
