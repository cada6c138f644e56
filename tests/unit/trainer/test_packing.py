"""Packed rows are computed as if each were alone: the same results, the same gradients, to the last bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from visionrl_trainer.packing import Packing, packed_attention  # noqa: E402

pytestmark = pytest.mark.vision

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
HEADS, GROUPS, WIDTH = 4, 2, 8
"""Query heads, query heads a key head, width of a head."""


class Attention(torch.nn.Module):
    """What the attention function reads of its layer."""

    is_causal = True
    num_key_value_groups = GROUPS


def heads(tokens: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, tokens, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


@given(LENGTHS, st.integers(0, 99))
def test_attention_stays_within_its_row(lengths: list[int], seed: int) -> None:
    total = sum(lengths)
    inputs = [heads(total, count, seed + n) for n, count in enumerate((HEADS, HEADS // GROUPS, HEADS // GROUPS))]
    packed, _ = packed_attention(
        Attention(), *inputs, None, packing=Packing.of(lengths, torch.device("cpu")), scaling=0.3
    )
    rows = zip(*(each.split(lengths, dim=2) for each in inputs), strict=True)
    alone = torch.cat([sdpa_attention_forward(Attention(), *row, None, scaling=0.3)[0] for row in rows], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-13)
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.autograd.grad((packed * weights).sum(), inputs)
    expected = torch.autograd.grad((alone * weights).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(LENGTHS)
def test_what_is_spread_is_gathered_again(lengths: list[int]) -> None:
    packing, values = Packing.of(lengths, torch.device("cpu")), heads(sum(lengths), HEADS, 0)
    batch = packing.spread(values)
    assert batch.shape == (len(lengths), HEADS, max(lengths), WIDTH)
    assert torch.equal(packing.gather(batch.transpose(1, 2)), values.transpose(1, 2))


def test_without_a_packing_it_is_transformers_own_attention() -> None:
    inputs = [heads(5, count, 0) for count in (HEADS, HEADS // GROUPS, HEADS // GROUPS)]
    found, expected = (
        function(Attention(), *inputs, None)[0] for function in (packed_attention, sdpa_attention_forward)
    )
    assert torch.equal(found, expected)
