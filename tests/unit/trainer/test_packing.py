"""Packed rows are computed as if each were alone: the same results, the same gradients, to the last bits; also where
they share a prefix that is computed once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from visionrl_trainer.model import flash
from visionrl_trainer.model.flash import Spans
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


# --- what a GPU's kernels compute, in plain operations


def scores(query_QAD: Tensor, key_KGD: Tensor, spans: Spans, scale: float) -> Tensor:
    """[A, Q, K]; -inf where a query does not see a key."""
    sees_QK = torch.zeros(len(query_QAD), len(key_KGD), dtype=torch.bool)
    for queries, keys in zip(spans.queries_N.unfold(0, 2, 1), spans.keys_N.unfold(0, 2, 1), strict=True):
        block = torch.ones(int(queries.diff()), int(keys.diff()), dtype=torch.bool)
        sees_QK[slice(*queries), slice(*keys)] = block.tril() if spans.causal else block
    found_AQK = scale * torch.einsum("qad,kad->aqk", query_QAD, for_query_heads(key_KGD))
    return found_AQK.masked_fill(~sees_QK, -torch.inf)


def for_query_heads(tensor_KGD: Tensor) -> Tensor:
    return tensor_KGD.repeat_interleave(GROUPS, dim=1)


def for_key_heads(gradient_KAD: Tensor) -> Tensor:
    return gradient_KAD.unflatten(1, (-1, GROUPS)).sum(2)


def plain_forward(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
    scores_AQK = scores(query, key, spans, scale)
    return torch.einsum("aqk,kad->qad", scores_AQK.softmax(-1), for_query_heads(value)), scores_AQK.logsumexp(-1)


def plain_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    denominator: Tensor,
    spans: Spans,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention's, arXiv:2205.14135, algorithm 4: from the output and the denominator that it is given."""
    assert denominator.is_contiguous()
    chances_AQK = (scores(query, key, spans, scale) - denominator[..., None]).exp()
    to_chances = torch.einsum("qad,kad->aqk", gradient, for_query_heads(value))
    to_scores = scale * chances_AQK * (to_chances - (gradient * output).sum(-1).T[..., None])
    return (
        torch.einsum("aqk,kad->qad", to_scores, for_query_heads(key)),
        for_key_heads(torch.einsum("aqk,qad->kad", to_scores, query)),
        for_key_heads(torch.einsum("aqk,qad->kad", chances_AQK, gradient)),
    )


def on_a_gpu() -> AbstractContextManager[object]:
    kernels: Any = {"forward_kernel": plain_forward, "backward_kernel": plain_backward, "has_kernel": lambda *_: True}
    patched: AbstractContextManager[object] = mock.patch.multiple(flash, **kernels)
    return patched


KERNELS = pytest.mark.parametrize("kernels", [nullcontext, on_a_gpu])


@KERNELS
@given(LENGTHS, st.integers(0, 99))
def test_attention_stays_within_its_row(
    kernels: Callable[[], AbstractContextManager[object]], lengths: list[int], seed: int
) -> None:
    total = sum(lengths)
    query, key, value = (heads(total, n, seed + n) for n in (HEADS, HEADS // GROUPS, HEADS // GROUPS))
    with kernels():
        together = packed(query, key, value, Packing.of(lengths, CPU))
    rows = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    alone = torch.cat([stock(q, k, v) for q, k, v in rows], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with kernels():
        found = torch.autograd.grad((together * weights).sum(), (query, key, value))
    expected = torch.autograd.grad((alone * weights).sum(), (query, key, value))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@KERNELS
@given(LENGTHS, st.integers(1, 9), st.integers(0, 99))
def test_every_row_attends_to_the_shared_prefix_and_to_itself(
    kernels: Callable[[], AbstractContextManager[object]], lengths: list[int], prefix: int, seed: int
) -> None:
    total = prefix + sum(lengths)
    query, key, value = (heads(total, n, seed + n) for n in (HEADS, HEADS // GROUPS, HEADS // GROUPS))
    with kernels():
        together = packed(query, key, value, Packing.of(lengths, CPU, prefix))
    split = [each.split([prefix, *lengths], dim=2) for each in (query, key, value)]
    rows = [[torch.cat([each[0], each[1 + n]], dim=2) for each in split] for n in range(len(lengths))]
    alone = [stock(q, k, v) for q, k, v in rows]
    expected = torch.cat([alone[0][:, :prefix], *[row[:, prefix:] for row in alone]], dim=1)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-13)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with kernels():
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


def test_a_gpus_attention_is_computed_again_where_layers_are() -> None:
    lengths, prefix = [3, 5], 4
    query, key, value = (heads(prefix + sum(lengths), n, n) for n in (HEADS, HEADS // GROUPS, HEADS // GROUPS))
    packing = Packing.of(lengths, CPU, prefix)
    with on_a_gpu():
        once = torch.autograd.grad(packed(query, key, value, packing).square().sum(), (query, key, value))
        again = torch.autograd.grad(
            checkpoint(packed, query, key, value, packing, use_reentrant=False).square().sum(), (query, key, value)
        )
    for one, other in zip(once, again, strict=True):
        torch.testing.assert_close(one, other)
