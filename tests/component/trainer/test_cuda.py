"""What only a CUDA device shows: its kernels agree with the CPU's, memory is as planned, and may run out once.

A few layers of the 4B's width, random weights: ``python -m pytest -m gpu tests/component/trainer/test_cuda.py``.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.bench.gpu import bench_spec
from tests.support.prompts import qwen_batch
from tests.support.true_width import full_policy
from visionrl.job import EnvSettings, JobSpec, Lora, TinyModel
from visionrl.tiny.model import build_tiny
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.stats import UpdateStats
from visionrl_trainer.algo.update import encode, update
from visionrl_trainer.model import packing
from visionrl_trainer.model.policy import PackedSequences, Policy
from visionrl_trainer.rollout.batch import Frame, Sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vision,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DECISIONS = 12
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    return bench_spec(CUDA)


@pytest.fixture(scope="module")
def wide(spec: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policy]:
    """Four layers of the 4B's width, in bfloat16."""
    policy = full_policy(tmp_path_factory.mktemp("wide") / "model", CUDA, layers=4, vision_depth=3)
    policy.add_adapter(spec.model.lora, seed=0)
    yield policy
    del policy
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def batch(wide: Policy, spec: JobSpec) -> tuple[list[Sample], dict[str, Frame]]:
    size, temperature = spec.rollout.env_config.image_size, spec.rollout.policy_config.temperature
    return qwen_batch(wide, DECISIONS, size, temperature)


def with_training(spec: JobSpec, **changes: object) -> JobSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def one_update(policy: Policy, spec: JobSpec, batch: tuple[list[Sample], dict[str, Frame]]) -> tuple[UpdateStats, int]:
    """What it found, and its peak of allocated bytes; the policy stays as it was."""
    start = policy.adapter_weights()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        optimizer = adapter_optimizer(policy.trainable(), spec.training.learning_rate, 0.0)
        found = update(policy, optimizer, *batch, spec, torch.Generator().manual_seed(0))
    finally:
        policy.set_adapter_weights(start)
        for _, parameter in policy.trainable():
            parameter.grad = None
    return found, torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("recompute", ["off", "on"])
def test_the_planned_memory_holds(
    recompute: str, wide: Policy, spec: JobSpec, batch: tuple[list[Sample], dict[str, Frame]]
) -> None:
    wide.memory = None
    job = with_training(spec, activation_checkpointing=recompute, micro_batch_tokens=16_384)
    loaded = torch.cuda.memory_allocated()
    _, peak = one_update(wide, job, batch)
    assert wide.memory is not None
    planned, used = wide.memory.needed, peak - loaded
    tokens = sum(len(s.prompt_ids) + len(s.completion_ids) for s in batch[0])
    print(f"{recompute}: planned {planned / 2**30:.2f} GiB for 16,384 tokens, used {used / 2**30:.2f} for {tokens}")
    assert used <= planned


def test_out_of_memory_halves_the_micro_batches_once_and_changes_no_result(
    wide: Policy, spec: JobSpec, batch: tuple[list[Sample], dict[str, Frame]], caplog: pytest.LogCaptureFixture
) -> None:
    tokens = 1_089 + DECISIONS * 200
    job = with_training(spec, activation_checkpointing="off", micro_batch_tokens=tokens)
    wide.memory = None
    small, least = one_update(wide, with_training(job, micro_batch_tokens=tokens // 2), batch)
    wide.memory = None
    whole, most = one_update(wide, job, batch)
    wide.memory = None
    _, total = torch.cuda.mem_get_info()
    sizes: list[int] = []
    collate = wide.collate

    def counted(samples: Sequence[Sample]) -> PackedSequences:
        sizes.append(len(samples))
        return collate(samples)

    limit = (least + most) / 2
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(limit / total)
        with mock.patch.object(wide, "collate", counted):
            found, _ = one_update(wide, job, batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        print(f"decisions of the micro-batches with {limit / 2**30:.2f} GiB: {sizes}")
        print(f"alone: small {least / 2**30:.2f} GiB, whole {most / 2**30:.2f}")
    assert sizes == [DECISIONS, 3, 3, 3, 3]
    assert wide.memory is not None
    assert wide.memory.halved
    assert "out of memory: from now on" in caplog.text
    assert (found.updates, found.tokens) == (whole.updates, whole.tokens)
    assert found.grad_norm == pytest.approx(small.grad_norm, rel=1e-3)
    assert found.grad_norm == pytest.approx(whole.grad_norm, rel=0.05)


def gradients(policy: Policy, samples: list[Sample], frames: dict[str, Frame]) -> tuple[Tensor, Tensor]:
    """Logprobs, and the gradient of their weighted sum: both on the CPU in float32."""
    for _, parameter in policy.trainable():
        parameter.grad = None
    logprobs_T, _ = policy.logprobs(samples, encode(policy, samples, frames), 1.0)
    (logprobs_T * torch.linspace(-1, 1, len(logprobs_T), device=logprobs_T.device)).sum().backward()
    gradient = torch.cat([p.grad.flatten() for _, p in policy.trainable() if p.grad is not None])
    return logprobs_T.detach().float().cpu(), gradient.float().cpu()


def test_a_card_computes_what_the_cpu_computes(tmp_path: Path) -> None:
    """In float32, with a shared prefix and without: the prefix's attention is another kernel on a card."""
    folder = build_tiny(TinyModel(), EnvSettings(image_size=144), tmp_path)
    found = {}
    for device in ("cpu", "cuda"):
        policy = Policy.load(folder, "float32", torch.device(device))
        policy.add_adapter(Lora(r=4, alpha=8), seed=0)
        with torch.no_grad():
            for index, (_, parameter) in enumerate(policy.trainable()):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        samples, frames = qwen_batch(policy, 6, 144, 1.0)
        found[device] = gradients(policy, samples, frames)
        if device == "cuda":
            with mock.patch.object(packing, "SHORTEST_PREFIX", 1 << 30):
                found["not shared"] = gradients(policy, samples, frames)
    for other in ("cuda", "not shared"):
        for value, expected in zip(found[other], found["cpu"], strict=True):
            assert torch.linalg.vector_norm(value - expected) <= 1e-4 * torch.linalg.vector_norm(expected)


def test_flash_attention_with_a_shared_prefix_is_as_exact_as_whole_rows(
    wide: Policy, batch: tuple[list[Sample], dict[str, Frame]]
) -> None:
    """Both in bfloat16, against float32."""
    policy, (samples, frames) = copy.deepcopy(wide), batch
    policy.memory = None
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.01 * torch.randn_like(parameter))
    shared = gradients(policy, samples, frames)
    with mock.patch.object(packing, "SHORTEST_PREFIX", 1 << 30):
        whole = gradients(policy, samples, frames)
    policy.model.float()
    policy.compute_dtype = torch.float32
    exact = gradients(policy, samples, frames)
    for name, index in (("logprobs", 0), ("gradients", 1)):
        errors = [float(torch.linalg.vector_norm(found[index] - exact[index])) for found in (shared, whole)]
        size = float(torch.linalg.vector_norm(exact[index]))
        print(f"{name}: off by {errors[0] / size:.2e} with a shared prefix, by {errors[1] / size:.2e} without")
        assert errors[0] <= 1.5 * errors[1]
