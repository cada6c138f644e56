"""Sequences packed into one, without padding and with their common prefix once.

The layers that work token by token (projections, MLP, norms, adapters: nearly all of the work) compute each token once
and no padding. Sequences that begin with the same text (system prompt, tools) share it: packed are the prefix, then the
rest of every sequence, and the prefix's keys and values collect the gradients of all of them.

Attention alone works sequence by sequence. A GPU's kernel takes packed sequences as they are
(:mod:`visionrl_trainer.model.flash`); elsewhere, queries, keys and values are laid out as a right-padded batch, and its
results are packed again. No token attends to another sequence, so only the order of summation changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from visionrl_trainer.model import flash
from visionrl_trainer.model.flash import PackedAttention, Spans

ATTENTION = "visionrl_packed"
"""Name of :func:`packed_attention` in transformers."""
SHORTEST_PREFIX = 32
"""Tokens; to share fewer saves less than attention in two parts costs."""


def shared_prefix(sequences: Sequence[tuple[int, ...]], image_token: int) -> int:
    """How many tokens these sequences share at their beginning and compute once: none for one sequence, none of the
    first frame and what follows, and never a whole sequence."""
    least, greatest = min(sequences), max(sequences)  # what these two share, all share
    limit = min(map(len, sequences)) - 1
    length = next((n for n in range(limit) if least[n] != greatest[n] or least[n] == image_token), limit)
    return length if length >= SHORTEST_PREFIX and len(sequences) > 1 else 0


@dataclass(frozen=True)
class Packing:
    """A shared prefix, and the place of each of P packed tokens after it in a batch of N sequences, padded to the
    longest."""

    sequences: int
    longest: int
    """Of the sequences without the prefix."""
    place_P: Tensor | None
    """Index into the flattened batch; None where all sequences are equally long and nothing is padded."""
    own: Spans
    """Of the prefix, if there is one, and of each sequence after it: their own tokens."""
    seen: Spans | None
    """Of all that comes after the prefix: the prefix. None where nothing is shared."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, prefix: int = 0) -> Packing:
        """The packing of sequences of these lengths, one after the other, after their shared prefix."""
        longest, place_P = max(lengths), None
        if min(lengths) != longest:
            place_P = torch.cat([torch.arange(length) + n * longest for n, length in enumerate(lengths)]).to(device)
        own = Spans.within([prefix, *lengths] if prefix else lengths, device)
        seen = Spans.across(sum(lengths), prefix, device) if prefix else None
        return cls(len(lengths), longest, place_P, own, seen)

    @property
    def prefix(self) -> int:
        """Tokens of the shared prefix."""
        return self.seen.longest_keys if self.seen else 0

    def spread(self, packed_1APD: Tensor) -> Tensor:
        """The batch [N, A, L, D] of packed heads."""
        packed_APD = packed_1APD[0]
        heads, _, width = packed_APD.shape
        if self.place_P is not None:
            grid = packed_APD.new_zeros(heads, self.sequences * self.longest, width)
            packed_APD = grid.index_copy(1, self.place_P, packed_APD)
        return packed_APD.view(heads, self.sequences, self.longest, width).transpose(0, 1)

    def gather(self, batch_NLAD: Tensor) -> Tensor:
        """The packed tokens [1, P, A, D] of a batch."""
        flat = batch_NLAD.flatten(0, 1)
        return (flat if self.place_P is None else flat[self.place_P])[None]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled-dot-product attention, [1, A, P, D] to [1, P, A, D], within the sequences of a packing; over everything,
    as transformers has it, without one."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if flash.has_kernel(query, value):
        tensors_PAD = [tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value)]
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return PackedAttention.apply(*tensors_PAD, packing.own, packing.seen, scale)[None], None
    if packing.prefix:
        # Recomputed in the backward pass: it would keep a copy of the prefix's keys and values for every sequence.
        return checkpoint(_prefix_attention, module, query, key, value, packing, use_reentrant=False, **kwargs), None
    query, key, value = packing.spread(query), packing.spread(key), packing.spread(value)
    output_NLAD, _ = sdpa_attention_forward(module, query, key, value, None, **kwargs)
    return packing.gather(output_NLAD), None


def _prefix_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, packing: Packing, **kwargs: Any
) -> Tensor:
    """The prefix attends to itself, the rest of every sequence to the prefix and to itself: [1, P, A, D]."""
    sizes = [packing.prefix, query.shape[2] - packing.prefix]
    (query, rest_query), (key, rest_key), (value, rest_value) = (t.split(sizes, dim=2) for t in (query, key, value))
    prefix_1SAD, _ = sdpa_attention_forward(module, query, key, value, None, **kwargs)
    rest_NALD = F.scaled_dot_product_attention(
        packing.spread(rest_query),
        torch.cat([key.expand(packing.sequences, -1, -1, -1), packing.spread(rest_key)], dim=2),
        torch.cat([value.expand(packing.sequences, -1, -1, -1), packing.spread(rest_value)], dim=2),
        attn_mask=causal_lower_right(packing.longest, packing.prefix + packing.longest),
        scale=kwargs.get("scaling"),
        enable_gqa=True,
    )
    return torch.cat([prefix_1SAD, packing.gather(rest_NALD.transpose(1, 2))], dim=1)


AttentionInterface.register(ATTENTION, packed_attention)
