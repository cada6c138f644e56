"""Which weights does the server apply?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.canary import Rig, refused, reported
from visionrl.adapters import Manifest
from visionrl_trainer.sync import inference_client

if TYPE_CHECKING:
    import torch

    from visionrl_trainer.model.policy import Policy

pytestmark = pytest.mark.vision

BOTH = pytest.mark.parametrize("policies", ["float32", "bfloat16"], indirect=True)


@BOTH
@pytest.mark.parametrize("size", [0.0, 5e-5, 5e-4, 0.05])
async def test_a_true_server_passes_from_the_first_update_to_large_ones(rig: Rig, size: float) -> None:
    for seed in range(3):
        rig.learn(size, seed)
        version = await rig.push()
        assert reported(rig) == version.name


async def test_the_policy_is_as_it_was_after_the_probe(rig: Rig) -> None:
    import torch

    rig.learn(0.05)
    before, banned = rig.policy.adapter_weights(), rig.policy.banned_ids
    await rig.push()
    after = rig.policy.adapter_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert rig.policy.banned_ids == banned


@BOTH
@pytest.mark.parametrize("size", [0.0, 5e-5, 0.05])
async def test_a_server_that_ignores_adapters_is_refused_however_little_the_version_changes(
    rig: Rig, size: float
) -> None:
    rig.learn(size)
    rig.server.tamper = lambda weights: [tensor.zero_() for tensor in weights.values()]  # type: ignore[assignment]
    await refused(rig, "serves other weights|does not apply adapters")


@pytest.mark.parametrize("kind", ["q_proj", "v_proj", "gate_proj", "down_proj"])
async def test_a_server_that_ignores_one_kind_of_module_is_refused(rig: Rig, kind: str) -> None:
    def tamper(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if f".{kind}." in name:
                tensor.zero_()

    rig.server.tamper = tamper
    await refused(rig, kind)


async def test_another_scale_is_refused(rig: Rig) -> None:
    def tamper(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if "lora_B" in name:
                tensor /= 2  # alpha / 2r

    rig.server.tamper = tamper
    await refused(rig, "does not apply adapters|serves other weights")


async def test_the_weights_of_another_run_are_refused_by_their_digest(rig: Rig) -> None:
    """Of the same size and number, too small for any statistic in bfloat16."""
    await rig.push()
    own = rig.policy.adapter_weights()
    rig.learn(5e-5, seed=1)
    other = rig.publish()
    rig.policy.set_adapter_weights(own)
    rig.learn(5e-5, seed=2)
    rig.server.serves = lambda model: model if "probe" in model or model == "base" else other.name
    await refused(rig, "serves content|nearer|serves other weights|other weights")


async def test_a_server_that_stays_at_the_last_version_is_refused(rig: Rig) -> None:
    rig.learn(0.02, seed=1)
    last = await rig.push()
    digest = rig.server.loaded[last.name]
    rig.learn(0.02, seed=2)
    version = rig.publish()
    rig.server.serves = lambda model: last.name if model == version.name else model
    rig.server.answers = []
    true_digest = Manifest.of_folder(rig.sync.store.folder(version)).digest

    class Lying(dict[str, str]):
        def __setitem__(self, name: str, value: str) -> None:
            super().__setitem__(name, true_digest if value == digest else value)

    rig.server.loaded = Lying(rig.server.loaded)
    from visionrl_trainer.sync.canary import CanaryFailed

    with pytest.raises(CanaryFailed, match=r"nearer|serves other weights|other weights"):
        await rig.sync.push(rig.policy, version)


async def test_another_base_model_is_refused(rig: Rig, tmp_path: Path) -> None:
    import torch

    from visionrl.job import EnvSettings, Lora, TinyModel
    from visionrl.tiny.model import build_tiny
    from visionrl_trainer.model.policy import Policy

    other = build_tiny(TinyModel(seed=9), EnvSettings(image_size=144), tmp_path)
    rig.server.policy = Policy.load(other, rig.server.dtype, torch.device("cpu"))
    rig.server.policy.add_adapter(Lora(r=4, alpha=8), seed=0)
    await refused(rig, "serves other weights")


@pytest.mark.parametrize(
    ("value", "share"), [(float("nan"), 1.0), (float("nan"), 0.01), (float("inf"), 0.01), (-1.7e308, 0.01)]
)
async def test_logprobs_that_are_no_logprobs_are_refused(rig: Rig, value: float, share: float) -> None:
    import torch

    def distort(logprobs: torch.Tensor) -> torch.Tensor:
        few = max(1, round(share * len(logprobs)))
        return torch.cat([torch.full((few,), value, dtype=torch.float64), logprobs[few:].double()])

    rig.learn(0.05)
    rig.server.distort = distort
    await refused(rig, "server")
    # Also where the server's first answers were right.
    rig.server.distort = lambda logprobs: logprobs
    await rig.push()
    rig.server.distort = distort
    await refused(rig, "server")


async def test_one_failed_check_is_repeated(rig: Rig) -> None:
    remaining = [1]

    def once(logprobs: torch.Tensor) -> torch.Tensor:
        return logprobs + 5 if remaining and remaining.pop() else logprobs

    rig.server.distort = once
    await rig.push()


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_token_ids": [10**9]},
        {"prompt_token_ids": [5, 6]},
        {"prompt_token_ids": None},
        {"choices": []},
        {"choices": [{"token_ids": [-1], "logprobs": {"content": [{"logprob": -1.0}]}}]},
        {"choices": [{"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -1.0}]}}]},
        {"choices": [{"token_ids": [5], "logprobs": None}]},
        {"choices": [{"token_ids": [], "logprobs": {"content": []}}]},
    ],
)
def test_an_answer_to_a_frame_that_cannot_be_computed_is_refused(policy: Policy, changes: dict[str, Any]) -> None:
    from visionrl_trainer.sync import image_prompt

    expect, frame = policy.image_tokens(144), image_prompt.frame("v", 144)
    answer = {
        "prompt_token_ids": [5, *[expect.placeholder_id] * expect.per_image, 6],
        "choices": [{"token_ids": [5], "logprobs": {"content": [{"logprob": -1.0}]}}],
    }
    assert image_prompt.read(answer, frame, policy).completion_ids == (5,)
    with pytest.raises(inference_client.UnusableAnswer):
        image_prompt.read(answer | changes, frame, policy)


async def test_a_policy_without_images_is_not_shown_one(rig: Rig) -> None:
    rollout = rig.sync.spec.rollout
    settings = rollout.policy_config.model_copy(update={"use_vision": False})
    rig.sync.spec = rig.sync.spec.model_copy(update={"rollout": rollout.model_copy(update={"policy_config": settings})})
    await rig.push()
    assert "/v1/chat/completions" not in {path for path, _ in rig.server.asked}


def test_an_update_below_rounding_is_told_to_be_so() -> None:
    """The measured case: one update at lr 5e-5 moves 0.010 nats, all of it the trainer's own rounding."""
    import torch

    from visionrl_trainer.sync.evidence import compare

    generator = torch.Generator().manual_seed(0)
    rounding = torch.randn(2, 400, generator=generator, dtype=torch.float64) * 0.011
    nothing = torch.zeros(400, dtype=torch.float64)
    update = compare(rounding[0], rounding[1], nothing, noise=0.011)
    assert not update.can_tell
    large = torch.randn(400, generator=generator, dtype=torch.float64) * 0.057
    assert compare(large + rounding[0], large, nothing, 0.011).is_expected
    ignored = compare(rounding[0], large, nothing, 0.011)
    assert ignored.can_tell
    assert not ignored.is_expected
    assert not compare(nothing * np.nan, large, nothing, 0.011).is_expected
