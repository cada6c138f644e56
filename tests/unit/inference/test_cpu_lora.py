"""LoRA on the CPU backend: every token gets its own adapter's change, and a token without one gets none."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

SLOTS, IN, OUT, RANK = 3, 5, 4, 2


@given(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12))
def test_each_token_gets_its_own_adapter_and_minus_one_none(slots: list[int]) -> None:
    import torch

    from visionrl_inference.cpu_lora import GroupedLora, group_rows

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(SLOTS, 1, RANK, IN, generator=generator)
    b = torch.randn(SLOTS, 1, OUT, RANK, generator=generator)
    x = torch.randn(len(slots), IN, generator=generator)
    y = torch.randn(len(slots), 1 + OUT, generator=generator)
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row, 1:] += 0.5 * b[slot, 0] @ (a[slot, 0] @ x[row])

    lora = GroupedLora(64, 16, "cpu")
    lora._groups = group_rows(torch.tensor(slots))
    buffer = torch.zeros(len(slots), RANK)
    lora._apply_shrink(buffer, x, a, 0.5)
    lora._apply_expand(y, buffer, b, 1, OUT)
    torch.testing.assert_close(y, expected)


def test_logprobs_of_a_prompt_beside_other_requests_leave_the_logits_as_they_are() -> None:
    """62 rows, where the step has two requests."""
    import torch

    from visionrl_inference.cpu_lora import GroupedLora

    lora, logits = GroupedLora(64, 16, "cpu"), torch.randn(62, 7)
    lora._sampler_indices[:2], lora.indices_len[1] = torch.tensor([0, 1]), 2
    before = logits.clone()
    zeros_a, zeros_b = torch.zeros(SLOTS, 1, RANK, IN), torch.zeros(SLOTS, 1, 7, RANK)
    lora.add_lora_logits(logits, torch.randn(62, IN), zeros_a, zeros_b, 1.0)
    assert torch.equal(logits, before)


def test_vllms_cpu_platform_is_told() -> None:
    from vllm.platforms import current_platform

    from visionrl_inference.cpu_lora import GroupedLora, register

    register()
    assert current_platform.get_punica_wrapper() == f"{GroupedLora.__module__}.GroupedLora"


def test_a_slot_that_another_adapter_got_under_an_unchanged_batch_is_noticed() -> None:
    """The canary of a new version makes vLLM load it while the last one decodes: the installed vLLM must map the batch
    anew, or requests are answered by another version."""
    from vllm.lora.model_manager import LRUCacheLoRAModelManager

    manager: Any = LRUCacheLoRAModelManager.__new__(LRUCacheLoRAModelManager)
    manager.lora_index_to_id, manager._last_mapping, manager._last_slot_layout = [1, 2], None, None
    mapped: list[object] = []
    manager._set_adapter_mapping = lambda mapping: mapped.append(mapping)
    for slots in ([1, 2], [1, 2], [3, 1]):
        manager.lora_index_to_id = slots
        manager.set_adapter_mapping("batch")
    assert len(mapped) == 2
