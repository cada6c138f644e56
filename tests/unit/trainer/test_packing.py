"""Packed rows are computed as if each were alone: the same results, the same gradients, to the last bits; also where
they share a prefix that is computed once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from visionrl_trainer.model.packing import SHORTEST_PREFIX, Packing, packed_attention, shared_prefix

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
HEADS, GROUPS, WIDTH = 4, 2, 8
"""Query heads, query heads a key head, width of a head."""


class Attention(nn.Module):
    """What the attention function reads of its layer."""

    is_causal = True
    num_key_value_groups = GROUPS


def heads(tokens: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, tokens, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return sdpa_attention_forward(Attention(), query, key, value, None)[0]


def packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing | None) -> Tensor:
    return packed_attention(Attention(), query, key, value, None, packing)[0]


@given(LENGTHS, st.integers(0, 99))
def test_attention_stays_within_its_row(lengths: list[int], seed: int) -> None:
    total = sum(lengths)
    query, key, value = (heads(total, n, seed + n) for n in (HEADS, HEADS // GROUPS, HEADS // GROUPS))
    together = packed(query, key, value, Packing.of(lengths, CPU))
    rows = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    alone = torch.cat([stock(q, k, v) for q, k, v in rows], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.autograd.grad((together * weights).sum(), (query, key, value))
    expected = torch.autograd.grad((alone * weights).sum(), (query, key, value))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 99))
def test_every_row_attends_to_the_shared_prefix_and_to_itself(lengths: list[int], prefix: int, seed: int) -> None:
    total = prefix + sum(lengths)
    query, key, value = (heads(total, n, seed + n) for n in (HEADS, HEADS // GROUPS, HEADS // GROUPS))
    together = packed(query, key, value, Packing.of(lengths, CPU, prefix))
    split = [each.split([prefix, *lengths], dim=2) for each in (query, key, value)]
    rows = [[torch.cat([each[0], each[1 + n]], dim=2) for each in split] for n in range(len(lengths))]
    alone = [stock(q, k, v) for q, k, v in rows]
    expected = torch.cat([alone[0][:, :prefix], *[row[:, prefix:] for row in alone]], dim=1)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-13)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.autograd.grad((together * weights).sum(), (query, key, value))
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), (query, key, value)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


IMAGE = 3
IDS = st.lists(st.integers(1, 4), min_size=1, max_size=6).map(tuple)


@given(st.lists(IDS, min_size=1, max_size=5), st.integers(0, 60))
def test_rows_share_what_all_begin_with_before_any_frame(ends: list[tuple[int, ...]], common: int) -> None:
    rows = [(*[2] * common, *end) for end in ends]
    prefix = shared_prefix(rows, IMAGE)
    first = rows[0]
    assert all(row[:prefix] == first[:prefix] and prefix < len(row) for row in rows)
    assert IMAGE not in first[:prefix]
    assert prefix == 0 or prefix >= SHORTEST_PREFIX
    longer = max(prefix + 1, SHORTEST_PREFIX)
    assert (
        len(rows) < 2
        or IMAGE in first[:longer]
        or longer >= min(map(len, rows))
        or len({row[:longer] for row in rows}) > 1
    )


@given(LENGTHS)
def test_what_is_spread_is_gathered_again(lengths: list[int]) -> None:
    packing, values = Packing.of(lengths, CPU), heads(sum(lengths), HEADS, 0)
    batch = packing.spread(values)
    assert batch.shape == (len(lengths), HEADS, max(lengths), WIDTH)
    assert torch.equal(packing.gather(batch.transpose(1, 2)), values.transpose(1, 2))


def test_without_a_packing_it_is_transformers_own_attention() -> None:
    query, key, value = (heads(5, n, n) for n in (HEADS, HEADS // GROUPS, HEADS // GROUPS))
    assert torch.equal(packed(query, key, value, None), stock(query, key, value))
