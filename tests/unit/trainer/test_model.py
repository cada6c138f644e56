"""The policy's forward pass is Hugging Face's, on exactly the sampled tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from visionrl.frames import frame_hash
from visionrl.job import Training
from visionrl_trainer.model.policy import BANNED_BIAS, ImageFeatures, Policy
from visionrl_trainer.model.vision import patches
from visionrl_trainer.rollout.batch import Sample, sequences

pytestmark = pytest.mark.vision


def encoded(policy: Policy, frames: list[np.ndarray]) -> dict[str, ImageFeatures]:
    with torch.no_grad():
        return {
            frame_hash(frame): image_features
            for frame, image_features in zip(frames, policy.encode_images(frames), strict=True)
        }


def reference_logprobs(policy: Policy, sample: Sample, frame: np.ndarray, temperature: float) -> torch.Tensor:
    """One row through the stock forward of the whole model."""
    ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
    assert policy.peft is not None
    image = policy.processor.image_processor(images=[frame], return_tensors="pt")
    output = policy.peft(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=image["pixel_values"],
        image_grid_thw=image["image_grid_thw"],
        mm_token_type_ids=(ids == policy.model.config.image_token_id).int(),
    )
    logits = output.logits[0, len(sample.prompt_ids) - 1 : -1].float()
    logits[:, list(policy.banned_ids)] += BANNED_BIAS
    chosen = torch.tensor(sample.completion_ids)[:, None]
    return (logits / temperature).log_softmax(-1).gather(1, chosen)[:, 0]


def disturb(policy: Policy) -> None:
    """Give the adapter an effect."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_batched_logprobs_equal_the_stock_forward_row_by_row(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray], temperature: float
) -> None:
    disturb(policy)
    with torch.no_grad():
        found, _ = policy.logprobs(samples, encoded(policy, frames), temperature)
        parts = found.split([len(sample.completion_ids) for sample in samples])
        for sample, frame, part in zip(samples, frames, parts, strict=True):
            torch.testing.assert_close(part, reference_logprobs(policy, sample, frame, temperature), rtol=0, atol=2e-6)


def test_what_else_is_in_the_batch_changes_nothing(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    image_features = encoded(policy, frames)
    with torch.no_grad():
        together, _ = policy.logprobs(samples, image_features, 1.0)
        alone = torch.cat([policy.logprobs([sample], image_features, 1.0)[0] for sample in reversed(samples)])
    backwards = torch.cat(together.split([len(sample.completion_ids) for sample in samples])[::-1])
    torch.testing.assert_close(backwards, alone, rtol=0, atol=2e-6)


def test_packing_leaves_the_gradient_as_it_is(policy: Policy, samples: list[Sample], frames: list[np.ndarray]) -> None:
    """Sequences together, in one sequence without padding, or one by one."""
    image_features = encoded(policy, frames)

    def gradient(batches: list[list[Sample]]) -> torch.Tensor:
        for _, parameter in policy.trainable():
            parameter.grad = None
        for batch in batches:
            policy.logprobs(batch, image_features, 1.0)[0].sum().backward()
        return torch.cat(
            [parameter.grad.flatten() for _, parameter in policy.trainable() if parameter.grad is not None]
        )

    disturb(policy)
    together, apart = gradient([samples]), gradient([[sample] for sample in samples])
    torch.testing.assert_close(together, apart, rtol=0, atol=2e-6 * float(apart.abs().max()))


def test_the_image_matters(policy: Policy, samples: list[Sample], frames: list[np.ndarray]) -> None:
    image_features = encoded(policy, frames)
    wrong = dict(zip(image_features, reversed(list(image_features.values())), strict=True))
    with torch.no_grad():
        assert not torch.allclose(
            policy.logprobs(samples, image_features, 1.0)[0], policy.logprobs(samples, wrong, 1.0)[0]
        )


def test_vision_tokens_are_as_good_as_impossible(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    video = policy.processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    sample = Sample(samples[0].prompt_ids, (video,), (), samples[0].images, "m")
    with torch.no_grad():
        assert policy.logprobs([sample], encoded(policy, frames), 1.0)[0].item() < -50


def test_a_frame_becomes_one_token_a_cell(policy: Policy) -> None:
    assert policy.image_tokens(144).per_image == 81


def test_a_fresh_adapter_changes_nothing_and_a_disturbed_one_does(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    image_features = encoded(policy, frames)
    with torch.no_grad():
        fresh, _ = policy.logprobs(samples, image_features, 1.0)
        with policy.without_adapter():
            base, _ = policy.logprobs(samples, image_features, 1.0)
        disturb(policy)
        disturbed, _ = policy.logprobs(samples, image_features, 1.0)
    torch.testing.assert_close(fresh, base, rtol=0, atol=0)
    assert (disturbed - base).abs().max() > 1e-3


def test_a_saved_adapter_gives_the_same_logprobs_elsewhere(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray], tiny_directory: Path, tmp_path: Path
) -> None:
    from visionrl.job import Lora

    disturb(policy)
    policy.save_adapter(tmp_path)
    other = Policy.load(tiny_directory, "float32", torch.device("cpu"))
    other.add_adapter(Lora(r=4, alpha=8), seed=99)
    other.load_adapter(tmp_path)
    image_features = encoded(policy, frames)
    with torch.no_grad():
        assert torch.equal(
            policy.logprobs(samples, image_features, 1.0)[0], other.logprobs(samples, image_features, 1.0)[0]
        )


def test_an_adapter_with_a_weight_that_is_not_finite_is_not_saved(policy: Policy, tmp_path: Path) -> None:
    with torch.no_grad():
        policy.trainable()[0][1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        policy.save_adapter(tmp_path)


def test_only_the_language_models_linears_are_trained(policy: Policy) -> None:
    names = [name for name, _ in policy.trainable()]
    assert names
    assert all("language_model.layers" in name and "lora_" in name for name in names)


@pytest.fixture
def segment(policy: Policy, samples: list[Sample], frames: list[np.ndarray]) -> list[Sample]:
    """Four turns that share a growing prompt, then one that starts afresh."""
    tokenizer = policy.processor.tokenizer
    between = tuple(
        tokenizer.encode("\n<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 81 + "<|vision_end|><|im_end|>\n")
    ) + tuple(tokenizer.encode("<|im_start|>assistant\n"))
    turns = [samples[0]]
    for sample in samples[1:]:
        seen = turns[-1].prompt_ids + turns[-1].completion_ids
        images = turns[-1].images + sample.images
        turns.append(Sample(seen + between, sample.completion_ids, (), images, sample.model))
    return [*turns, samples[0]]


def test_the_turns_of_a_segment_are_one_row(policy: Policy, segment: list[Sample]) -> None:
    rows = policy.collate(segment)
    assert rows.packing.sequences == 2
    assert len(rows.images) == 5


def test_a_segment_has_the_same_logprobs_as_one_row_and_turn_by_turn(
    policy: Policy, segment: list[Sample], frames: list[np.ndarray]
) -> None:
    disturb(policy)
    image_features = encoded(policy, frames)
    with torch.no_grad():
        together, _ = policy.logprobs(segment, image_features, 1.0)
        apart = torch.cat([policy.logprobs([turn], image_features, 1.0)[0] for turn in segment])
    torch.testing.assert_close(together, apart, rtol=0, atol=5e-6)


def test_an_answer_that_reads_differently_in_the_next_prompt_ends_the_row(
    policy: Policy, segment: list[Sample]
) -> None:
    first, second, *_ = segment
    altered = Sample(first.prompt_ids, (*first.completion_ids[:-2], 7, first.completion_ids[-1]), (), first.images, "m")
    assert policy.collate([altered, second]).packing.sequences == 2


# --- the shared prefix


def after(system: tuple[int, ...], samples: list[Sample]) -> list[Sample]:
    """The samples with a system prompt before their prompts."""
    return [replace(sample, prompt_ids=system + sample.prompt_ids) for sample in samples]


def system_prompt(policy: Policy) -> tuple[int, ...]:
    return tuple(policy.processor.tokenizer.encode("<|im_start|>system\n" + "collect wood, " * 12 + "<|im_end|>\n"))


def logprobs_and_gradient(
    policy: Policy, batches: list[list[Sample]], features: dict[str, ImageFeatures]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the batches, one after the other; every token has another weight."""
    for _, parameter in policy.trainable():
        parameter.grad = None
    found = [policy.logprobs(batch, features, 0.7)[0] for batch in batches]
    logprobs_T = torch.cat(found)
    (logprobs_T * torch.linspace(-1, 1, len(logprobs_T))).sum().backward()
    return logprobs_T.detach(), torch.cat([p.grad.flatten() for _, p in policy.trainable() if p.grad is not None])


@pytest.mark.parametrize("recompute", ["on", "off"])
@pytest.mark.parametrize("turns", ["decisions", "segments"])
def test_a_prefix_computed_once_leaves_logprobs_and_gradient_as_they_are(
    recompute: Literal["on", "off"],
    turns: str,
    policy: Policy,
    samples: list[Sample],
    segment: list[Sample],
    frames: list[np.ndarray],
) -> None:
    disturb(policy)
    policy.plan_memory(Training(iterations=1, activation_checkpointing=recompute))
    system, features = system_prompt(policy), encoded(policy, frames)
    rows = after(system, samples if turns == "decisions" else segment)
    packing = policy.collate(rows).packing
    assert packing.prefix >= len(system)
    assert packing.sequences == len(sequences(rows)) > 1
    apart = [[rows[index] for index in run] for run in sequences(rows)]
    assert all(policy.collate(one).packing.prefix == 0 for one in apart)
    together, expected = (logprobs_and_gradient(policy, batches, features) for batches in ([rows], apart))
    torch.testing.assert_close(together[0], expected[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(together[1], expected[1], rtol=0, atol=2e-6 * float(expected[1].abs().max()))


def test_a_prompt_without_a_frame_is_shared_up_to_where_answers_differ(policy: Policy, samples: list[Sample]) -> None:
    disturb(policy)
    prompt = system_prompt(policy)
    rows = [replace(sample, prompt_ids=prompt, images=()) for sample in samples]
    assert policy.collate(rows).packing.prefix >= len(prompt)
    together, apart = (logprobs_and_gradient(policy, b, {}) for b in ([rows], [[row] for row in rows]))
    torch.testing.assert_close(together[0], apart[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(together[1], apart[1], rtol=0, atol=2e-6 * float(apart[1].abs().max()))


def test_a_shared_prefix_is_computed_and_kept_once(policy: Policy, samples: list[Sample]) -> None:
    system = system_prompt(policy)
    rest = [len(sample.prompt_ids) + len(sample.completion_ids) for sample in samples]
    assert len(policy.collate(after(system, samples)).ids_P) <= len(system) + sum(rest)
    other = after((system[1],), after(system, samples[:1])) + after(system, samples[1:])
    assert policy.collate(other).packing.prefix == 0


@pytest.mark.parametrize("size", [144, 100])
def test_all_frames_at_once_give_what_the_stock_tower_gives_one_by_one(policy: Policy, size: int) -> None:
    """Patches bit for bit, also of frames that the image processor resizes."""
    generator = np.random.default_rng(5)
    frames = [generator.integers(256, size=(size, size, 3), dtype=np.uint8) for _ in range(3)]
    processor = policy.processor.image_processor
    stock = [processor(images=[frame], return_tensors="pt") for frame in frames]
    found_PD, grid_3 = patches(frames, processor, policy.device)
    assert torch.equal(found_PD, torch.cat([inputs["pixel_values"] for inputs in stock]))
    assert all(torch.equal(grid_3, inputs["image_grid_thw"][0]) for inputs in stock)
    with torch.no_grad():
        for inputs, features in zip(stock, policy.encode_images(frames), strict=True):
            expected = policy.model.model.get_image_features(**inputs, return_dict=True)
            torch.testing.assert_close(features.embeds, expected.pooler_output[0], rtol=0, atol=1e-5)
            for layer, stock_layer in zip(features.deepstack, expected.deepstack_features, strict=True):
                torch.testing.assert_close(layer, stock_layer, rtol=0, atol=1e-5)
