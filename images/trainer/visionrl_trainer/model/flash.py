"""Attention of packed sequences on a GPU: without padding, and without a copy of the prefix for each sequence.

FlashAttention (arXiv:2307.08691) takes sequences of any lengths one after the other, and returns the logarithm of the
softmax's denominator beside the output. With the two, attention to a prefix and attention to a sequence's own tokens
are computed apart and merged exactly; either part's backward pass takes the merged output and denominator, since its
probabilities are those of the whole (as in ring attention, arXiv:2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

AMPERE = (8, 0)
"""The first compute capability that the kernels are made for."""
HEAD_WIDTHS = range(8, 257, 8)


@dataclass(frozen=True)
class Spans:
    """Which keys the queries see: sequence by sequence, all of them or those up to their own place."""

    queries_N: Tensor
    """Where each sequence's queries begin and the last one's end, int32 [sequences + 1]."""
    keys_N: Tensor
    longest_queries: int
    longest_keys: int
    causal: bool

    @classmethod
    def within(cls, lengths: Sequence[int], device: torch.device) -> Spans:
        """Sequences of these lengths, each token with those before it."""
        places = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(places, places, max(lengths), max(lengths), causal=True)

    @classmethod
    def across(cls, queries: int, keys: int, device: torch.device) -> Spans:
        """So many queries, each with all of so many keys."""
        one, other = (torch.tensor([0, count], dtype=torch.int32, device=device) for count in (queries, keys))
        return cls(one, other, queries, keys, causal=False)

    def arguments(self) -> tuple[Any, ...]:
        """As the kernels take them, with the dropout between."""
        return self.queries_N, self.keys_N, self.longest_queries, self.longest_keys, 0.0, self.causal


def has_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether there is one for these tensors; it computes in the values' dtype."""
    return (
        value.is_cuda
        and value.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] in HEAD_WIDTHS
        and torch.cuda.get_device_capability(value.device) >= AMPERE
    )


def forward_kernel(query_PAD: Tensor, key_PGD: Tensor, value_PGD: Tensor, spans: Spans, scale: float) -> Any:
    """The output [P, A, D], and the logarithm of each query's denominator, float32 [A, P]."""
    found = torch.ops.aten._flash_attention_forward(
        query_PAD, key_PGD, value_PGD, *spans.arguments(), return_debug_mask=False, scale=scale
    )
    return found[0], found[1]


def backward_kernel(
    gradient_PAD: Tensor,
    query_PAD: Tensor,
    key_PGD: Tensor,
    value_PGD: Tensor,
    output_PAD: Tensor,
    denominator_AP: Tensor,
    spans: Spans,
    scale: float,
) -> Any:
    """The gradients of queries, keys and values."""
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query_PAD.device), torch.empty(0, device=query_PAD.device)
    tensors = (gradient_PAD, query_PAD, key_PGD, value_PGD, output_PAD, denominator_AP)
    return torch.ops.aten._flash_attention_backward(*tensors, *spans.arguments(), *no_dropout, scale=scale)


class PackedAttention(torch.autograd.Function):
    """``own`` are the spans of the sequences, the prefix being the first of them; ``seen`` those of everything after
    the prefix to the prefix, None where nothing is shared. Queries are [P, A, D], keys and values [P, G, D] with A a
    multiple of G; the output is [P, A, D]."""

    @staticmethod
    def forward(
        ctx: Any, query_PAD: Tensor, key_PGD: Tensor, value_PGD: Tensor, own: Spans, seen: Spans | None, scale: float
    ) -> Tensor:
        output_PAD, denominator_AP = forward_kernel(query_PAD, key_PGD, value_PGD, own, scale)
        if seen:
            length = seen.longest_keys
            rest_RAD, rest_AR = output_PAD[length:], denominator_AP[:, length:]
            prefix_RAD, prefix_AR = forward_kernel(
                query_PAD[length:], key_PGD[:length], value_PGD[:length], seen, scale
            )
            share_RA1 = torch.sigmoid(prefix_AR - rest_AR).T[..., None]  # of the prefix, in the probabilities
            wide = denominator_AP.dtype
            rest_RAD.copy_(torch.lerp(rest_RAD.to(wide), prefix_RAD.to(wide), share_RA1))
            rest_AR.copy_(torch.logaddexp(rest_AR, prefix_AR))
        ctx.save_for_backward(query_PAD, key_PGD, value_PGD, output_PAD, denominator_AP)
        ctx.own, ctx.seen, ctx.scale = own, seen, scale
        return output_PAD

    @staticmethod
    def backward(ctx: Any, gradient_PAD: Tensor) -> tuple[Tensor | None, ...]:
        # Read once: where layers are recomputed, they are not there a second time.
        query_PAD, key_PGD, value_PGD, output_PAD, denominator_AP = ctx.saved_tensors
        query, key, value = backward_kernel(
            gradient_PAD, query_PAD, key_PGD, value_PGD, output_PAD, denominator_AP, ctx.own, ctx.scale
        )
        if ctx.seen:
            length = ctx.seen.longest_keys
            seen = backward_kernel(
                gradient_PAD[length:],
                query_PAD[length:],
                key_PGD[:length],
                value_PGD[:length],
                output_PAD[length:],
                denominator_AP[:, length:].contiguous(),
                ctx.seen,
                ctx.scale,
            )
            for whole, part in ((query[length:], seen[0]), (key[:length], seen[1]), (value[:length], seen[2])):
                whole += part
        return query, key, value, None, None, None
