"""The language model's forward pass on packed sequences, in pieces that keep little for the backward pass.

Decoder layers can be recomputed in the backward pass (activation checkpointing, arXiv:1604.06174): what is kept of each
is its input. Logits of a large vocabulary are by far the widest activation, so they exist for a few hundred tokens at a
time, and are recomputed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from visionrl_trainer.model.packing import Packing

LOGITS_AT_ONCE = 1 << 26
"""Numbers in a chunk of logits: 256 MB in float32."""

Head = Callable[[Tensor], Tensor]
"""From hidden states [T, H] to logits [T, V]."""


def last_hidden(
    language_model: Any,
    embeds_PH: Tensor,
    positions_3P: Tensor,
    visual_V: Tensor,
    deepstack: Sequence[Tensor],
    packing: Packing,
    recompute: bool,
) -> Tensor:
    """Last hidden states [P, H] of packed sequences.

    ``deepstack`` holds, for each of the first layers, what is added after it at the V places of ``visual_V``.
    """
    hidden_1PH = embeds_PH[None]
    position_embeddings = language_model.rotary_emb(hidden_1PH, positions_3P[:, None])
    for index, layer in enumerate(language_model.layers):
        run = partial(layer, position_embeddings=position_embeddings, packing=packing)
        if recompute and torch.is_grad_enabled():
            hidden_1PH = checkpoint(run, hidden_1PH, use_reentrant=False)
        else:
            hidden_1PH = run(hidden_1PH)
        if index < len(deepstack):
            hidden_1PH = hidden_1PH.index_add(1, visual_V, deepstack[index].to(hidden_1PH.dtype)[None])
    return language_model.norm(hidden_1PH)[0]


def score(
    hidden_TH: Tensor, targets_T: Tensor, head: Head, bias_V: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of every target and the entropy there, both [T], for logits divided by ``temperature`` after
    ``bias_V`` is added. The entropy carries no gradient."""
    run = partial(_score_chunk, head=head, bias_V=bias_V, temperature=temperature)
    size = max(1, LOGITS_AT_ONCE // len(bias_V))
    chunks = [
        checkpoint(run, *chunk, use_reentrant=False) if torch.is_grad_enabled() else run(*chunk)
        for chunk in zip(hidden_TH.split(size), targets_T.split(size), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in chunks]), torch.cat([entropy for _, entropy in chunks])


def _score_chunk(
    hidden_TH: Tensor, targets_T: Tensor, head: Head, bias_V: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_TV = head(hidden_TH).float()
    logits_TV += bias_V  # in place: another copy would be a chunk's size again
    logits_TV /= temperature
    logprobs_TV = logits_TV.log_softmax(dim=-1)
    logprobs_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0]
    with torch.no_grad():
        entropy_T = -(logprobs_TV.exp().mul_(logprobs_TV)).sum(dim=-1)
    return logprobs_T, entropy_T
