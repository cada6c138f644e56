"""LoRA on vLLM's CPU backend, one matrix product per adapter instead of one gathered matrix per token.

vLLM 0.32's CPU kernels have three faults that matter here. They copy the adapter's matrices once for every token of the
batch, which took half of the tiny model's time. A token without an adapter has the index -1, which they use as an
index: such tokens get the adapter in the *last* slot, so the base model answers with somebody else's weights once all
slots are taken. And the LM head takes the rows of a prompt's logprobs for the requests of the step: the engine dies
where their numbers differ. Registered as a ``vllm.general_plugins`` entry point: the engine's process needs it too.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows = slice | torch.Tensor


class GroupedLora(PunicaWrapperCPU):
    """Groups a batch's tokens by adapter, once a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[tuple[int, Rows]] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._groups = group_rows(self.token_lora_indices)

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        """``y[rows] = scale · x[rows] Aᵀ``: y [tokens, rank] zeros, x [tokens, in], w_t_all [slots, 1, rank, in]."""
        for slot, rows in self._groups:
            y[rows] = (x[rows] @ w_t_all[slot, 0].T).to(y.dtype) * scale

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        """``y[rows, slice] += x[rows] Bᵀ``: y [tokens, out], x [tokens, rank], w_t_all [slots, 1, out, rank]."""
        columns = slice(y_offset, y_offset + y_slice_size)
        for slot, rows in self._groups:
            change = x[rows].to(y.dtype) @ w_t_all[slot, 0].T
            y[rows, columns] = y[rows, columns] + change if add_inputs else change

    def add_lora_logits(self, *_: Any, **__: Any) -> None:
        """Nothing: no adapter that is served changes the LM head (:func:`visionrl_inference.adapters.check`)."""


def group_rows(slots: torch.Tensor) -> list[tuple[int, Rows]]:
    """Rows of each adapter's slot, from the slot of every token [tokens]; -1 is none and gets no group."""
    found = slots.unique().tolist()
    if len(found) == 1:
        return [(slot, slice(None)) for slot in found if slot >= 0]
    return [(slot, (slots == slot).nonzero()[:, 0]) for slot in found if slot >= 0]


def register() -> None:
    """Make vLLM's CPU platform use :class:`GroupedLora`. Does nothing on another platform."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        name = f"{GroupedLora.__module__}.{GroupedLora.__qualname__}"
        setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda _: name))  # noqa: B010
