"""Sequences of different lengths packed into one, without padding.

The layers that work token by token (projections, MLP, norms, adapters: nearly all of the work) compute each token once
and no padding. Attention alone works sequence by sequence: queries, keys and values are laid out as a right-padded
batch, and its results are packed again. No token attends to another sequence, so only the order of summation changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "visionrl_packed"
"""Name of :func:`packed_attention` in transformers."""


@dataclass(frozen=True)
class Packing:
    """The place of each of P packed tokens in a batch of N sequences, padded to the longest."""

    sequences: int
    longest: int
    place_P: Tensor | None
    """Index into the flattened batch; None where all sequences are equally long and nothing is padded."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """The packing of sequences of these lengths, one after the other."""
        longest = max(lengths)
        if min(lengths) == longest:
            return cls(len(lengths), longest, None)
        place_P = torch.cat([torch.arange(length) + n * longest for n, length in enumerate(lengths)])
        return cls(len(lengths), longest, place_P.to(device))

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
    """transformers' scaled-dot-product attention within the sequences of a packing, or over everything without one."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = packing.spread(query), packing.spread(key), packing.spread(value)
    output_NLAD, _ = sdpa_attention_forward(module, query, key, value, None, **kwargs)
    return packing.gather(output_NLAD), None


AttentionInterface.register(ATTENTION, packed_attention)
