"""Micro-batches fit: what is kept for the backward pass is little, is known before, and changes no result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from tests.support.true_width import true_width_config
from tests.unit.trainer.test_model import disturb, encoded
from visionrl.job import Lora, Training
from visionrl.jobfile import load_job
from visionrl_trainer.model import forward, memory
from visionrl_trainer.model.adapter import AdaptedLinear, with_adapter
from visionrl_trainer.model.memory import GIB, MemoryPlan, kept_bytes, plan_memory
from visionrl_trainer.model.micro_batches import micro_batches
from visionrl_trainer.model.norm import RmsNorm
from visionrl_trainer.model.packing import ATTENTION, Packing
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Sample

pytestmark = pytest.mark.vision

IMAGE = 9
"""Id of a placeholder."""
REPOSITORY = Path(__file__).parents[3]


def plan(tokens: int = 4096, samples: int | None = None) -> MemoryPlan:
    return MemoryPlan(tokens, samples, recompute=False, needed=0, available=0)


def result(policy: Policy, samples: list[Sample], frames: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs, entropies and a gradient."""
    for _, parameter in policy.trainable():
        parameter.grad = None
    logprobs_T, entropy_T = policy.logprobs(samples, encoded(policy, frames), 0.7)
    (logprobs_T * torch.linspace(-1, 1, len(logprobs_T))).sum().backward()
    gradient = torch.cat([p.grad.flatten() for _, p in policy.trainable() if p.grad is not None])
    return logprobs_T.detach(), entropy_T, gradient


@pytest.mark.parametrize("change", ["recompute", "chunks", "both"])
def test_what_is_recomputed_is_the_same(
    change: str, policy: Policy, samples: list[Sample], frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(policy)
    expected = result(policy, samples, frames)
    if change != "chunks":
        policy.plan_memory(Training(iterations=1, activation_checkpointing="on"))
    if change != "recompute":
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 3 * policy.model.config.text_config.vocab_size)
    for found, wanted in zip(result(policy, samples, frames), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_neither_logits_nor_the_entropy_are_kept(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    vocabulary = policy.model.config.text_config.vocab_size
    features, widths = encoded(policy, frames), set()

    def pack(tensor: Tensor) -> Tensor:
        widths.add(tensor.shape[-1] if tensor.ndim == 2 and tensor.is_floating_point() else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, entropy_T = policy.logprobs(samples, features, 1.0)
    assert vocabulary not in widths
    assert not entropy_T.requires_grad


def test_recomputed_layers_keep_their_input_alone(
    policy: Policy, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    features, language_model = encoded(policy, frames), policy.model.model.language_model
    keeping = kept_bytes(lambda: policy.logprobs(samples, features, 1.0)[0], policy.model)
    policy.plan_memory(Training(iterations=1, activation_checkpointing="on"))
    recomputing = kept_bytes(lambda: policy.logprobs(samples, features, 1.0)[0], policy.model)
    tokens = sum(len(sample.prompt_ids) + len(sample.completion_ids) for sample in samples)
    hidden = tokens * language_model.config.hidden_size * 4
    assert recomputing <= (len(language_model.layers) + 4) * hidden
    assert recomputing < keeping / 4


# --- the adapter


def test_an_adapter_is_float32_and_computed_in_the_models_dtype(
    tiny_directory: Path, samples: list[Sample], frames: list[np.ndarray]
) -> None:
    policy = Policy.load(tiny_directory, "bfloat16", torch.device("cpu"))
    policy.add_adapter(Lora(r=4, alpha=8), seed=0)
    disturb(policy)
    kept: list[Tensor] = []
    for module in policy.model.modules():
        if isinstance(module, AdaptedLinear):
            module.register_forward_hook(lambda _, inputs, output: kept.extend([*inputs, output]))
    _, _, gradient = result(policy, samples, frames)
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    assert {parameter.dtype for _, parameter in policy.trainable()} == {torch.float32}
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0


def test_an_adapted_layer_is_pefts() -> None:
    """With dropout, which draws the same numbers, and without the adapter."""
    torch.manual_seed(0)
    base = nn.Linear(48, 64, bias=False).requires_grad_(False).double()
    x = torch.randn(2, 5, 48, requires_grad=True, dtype=torch.float64)
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.5)
    pefts, ours = (kind(base, "default", config, r=4, lora_alpha=6).double() for kind in (PeftLinear, AdaptedLinear))
    for weight in pefts.parameters():
        nn.init.normal_(weight)
    ours.load_state_dict(pefts.state_dict())
    found = []
    for layer in (pefts, ours):
        torch.manual_seed(0)
        weights = [weight for name, weight in layer.named_parameters() if "lora_" in name]
        output = layer(x)
        found.append([output, *torch.autograd.grad(output.square().sum(), [x, *weights])])
        layer.enable_adapters(False)
        torch.testing.assert_close(layer(x), base(x), rtol=0, atol=0)
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_one_operation_is_the_stock_one_but_for_one_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stock = Qwen3VLTextRMSNorm(64).to(dtype)
    nn.init.normal_(stock.weight)
    ours, exact = RmsNorm(stock), Qwen3VLTextRMSNorm(64).double()
    exact.load_state_dict(stock.state_dict())
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(7, 64, dtype=dtype)
    wanted = exact.weight * x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + ours.eps)
    assert ours(x).dtype == dtype
    assert torch.equal(ours(x), wanted.to(dtype)) or dtype == torch.float32
    torch.testing.assert_close(ours(x), stock(x), rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-7)


# --- micro-batches


def sample(length: int, first: int = 1) -> Sample:
    return Sample((first, *[1] * (length - 2)), (2,), (-1.0,), (), "m")


def test_micro_batches_are_bounded_by_tokens_and_hold_every_sequence_once() -> None:
    lengths = [100, 900, 100, 250, 100, 90, 300]
    samples = [sample(length, first=n) for n, length in enumerate(lengths)]
    groups = list(micro_batches([range(n, n + 1) for n in range(len(samples))], samples, plan(tokens=400), IMAGE))
    assert sorted(index for group in groups for index in group) == list(range(len(samples)))
    padded = [len(group) * max(lengths[index] for index in group) for group in groups]
    assert [size for size in padded if size > 400] == [900]  # alone, because it is longer than the budget
    assert len(groups) == 4


def test_micro_batches_keep_sequences_whole_and_take_a_bound_on_decisions(samples: list[Sample]) -> None:
    groups = list(micro_batches([range(0, 1), range(1, 4)], samples, plan(samples=2), IMAGE))
    assert sorted(map(sorted, groups)) == [[0], [1, 2, 3]]
    assert list(micro_batches([range(0, 1), range(1, 2)], samples, plan(samples=2), IMAGE)) == [[0, 1]]


def test_a_shared_prefix_counts_once() -> None:
    system = tuple(range(10, 110))
    samples = [Sample((*system, IMAGE, n), (5,) * length, (), (), "m") for n, length in enumerate([8, 8, 18, 18])]
    runs = [range(n, n + 1) for n in range(4)]
    assert list(micro_batches(runs, samples, plan(tokens=100 + 4 * 20), IMAGE)) == [[0, 1, 2, 3]]
    assert list(micro_batches(runs, samples, plan(tokens=100 + 4 * 20 - 1), IMAGE)) == [[0, 1, 2], [3]]
    apart = [replace(sample, prompt_ids=(n, *sample.prompt_ids)) for n, sample in enumerate(samples)]
    assert list(micro_batches(runs, apart, plan(tokens=300), IMAGE)) == [[0, 1], [2, 3]]


# --- the plan


@pytest.mark.parametrize(
    ("setting", "available", "recompute"),
    [("auto", 1 << 40, False), ("auto", 1 << 20, True), ("on", 1 << 40, True), ("off", 1 << 20, False)],
)
def test_activations_are_recomputed_where_memory_asks_for_it(
    setting: Any, available: int, recompute: bool, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    found = plan_memory(policy.model, Training(iterations=1, activation_checkpointing=setting))
    assert found.recompute is recompute


def test_what_is_reserved_is_left_free(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 40)
    found = plan_memory(policy.model, Training(iterations=1), reserved=(1 << 40) - (1 << 20))
    assert (found.recompute, found.available) == (True, 1 << 20)
    assert plan_memory(policy.model, Training(iterations=1), reserved=1 << 41).available == 0


def test_a_plan_that_does_not_fit_says_what_to_lower(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 20)
    plan_memory(policy.model, Training(iterations=1))
    assert "lower training.microBatchTokens" in caplog.text


def test_the_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.available_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory.available_bytes(torch.device("cpu")) == 2_000_000 < free
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(torch.device("cpu")) > 2_000_000


# --- the 4B


@pytest.fixture(scope="module")
def four_billion() -> Any:
    """The published shape: one layer's weights, 36 times. Its embeddings are never touched, so they take no memory."""
    from transformers import Qwen3VLForConditionalGeneration

    attention = {"text_config": ATTENTION, "vision_config": "sdpa"}
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration._from_config(
            true_width_config(1, 6), dtype=torch.bfloat16, attn_implementation=attention
        )
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for weight in layer.parameters():
                weight.zero_()
    with_adapter(model, Lora(r=16, alpha=32), seed=0)
    model.eval()
    language_model = model.model.language_model
    language_model.layers = nn.ModuleList([language_model.layers[0]] * 36)
    return model


@pytest.mark.parametrize("file", ["configs/crafter-qwen3vl-4b.yaml", "README.md"])
@pytest.mark.parametrize(
    ("card_gib", "tokens", "recompute", "limit_gib"),
    [(140, 16_384, False, 90), (79, 16_384, True, 24), (24, 16_384, True, 12), (16, 8_192, True, 6)],
)
def test_the_4b_fits(
    file: str,
    card_gib: int,
    tokens: int,
    recompute: bool,
    limit_gib: int,
    four_billion: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the default of a GPU: 80 GB recompute what an H200 has room for, and a small card takes fewer tokens."""
    text = (REPOSITORY / file).read_text()
    (tmp_path / "job.yaml").write_text(text.split("```yaml\n")[1].split("```")[0] if file == "README.md" else text)
    training = load_job(tmp_path / "job.yaml").spec.training
    assert training.micro_batch_tokens is None
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    monkeypatch.setattr(memory, "available_bytes", lambda device: card_gib * GIB - 8_900_000_000)
    plan = plan_memory(four_billion, training)
    assert (plan.tokens, plan.recompute) == (tokens, recompute)
    assert plan.needed <= limit_gib * GIB


def test_the_estimate_of_a_layer_is_what_it_keeps(four_billion: Any) -> None:
    language_model = four_billion.model.language_model
    tokens = 256
    hidden = torch.zeros(1, tokens, 2560, dtype=torch.bfloat16).requires_grad_()
    cos_sin = language_model.rotary_emb(hidden, torch.arange(tokens).expand(3, 1, -1))
    packing = Packing.of([tokens], hidden.device)
    kept = kept_bytes(
        lambda: language_model.layers[0](hidden, position_embeddings=cos_sin, packing=packing), language_model
    )
    assert kept == pytest.approx(tokens * memory.layer_bytes(language_model), rel=0.1)
