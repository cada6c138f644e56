"""Frames for the vision tower: all of them in one operation each, not one after the other.

The stock code makes a frame's patches alone and attends within each frame in a call of its own; with hundreds of frames
that is most of the time, on a GPU in which the kernels are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed

from visionrl_trainer.rollout.batch import Frame

FRAMES_ATTENTION = "visionrl_frames"
"""Name of :func:`frames_attention` in transformers."""


class MatmulPatchEmbed(torch.nn.Module):
    """A patch embedding as one matrix product. The stock one is a Conv3d with stride = kernel, and takes a quarter of a
    training step on a CPU. The weights keep their names."""

    def __init__(self, stock: Qwen3VLVisionPatchEmbed) -> None:
        super().__init__()
        self.proj = stock.proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.to(weight.dtype).view(-1, weight.shape[1]), weight, self.proj.bias)


def patches(frames: Sequence[Frame], processor: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patches of frames of one size, [frames · patches, channels · times · height · width], and their grid [3]: what
    the model's image processor makes of each frame, by its own operations on the stack of all frames."""
    factor = processor.patch_size * processor.merge_size
    images_NCHW = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    # On the CPU, as the server does: a resampled byte must not depend on the device.
    images_NCHW = processor.resize(images_NCHW, processor.size, processor.resample, factor).to(device)
    images_NCHW = processor.rescale_and_normalize(
        images_NCHW, True, processor.rescale_factor, True, processor.image_mean, processor.image_std
    )
    patches_NPD, height, width = processor.patchify(
        images_NCHW, processor.patch_size, processor.merge_size, processor.temporal_patch_size
    )
    return patches_NPD.flatten(0, 1), torch.tensor([1, height, width], device=device)


def run_tower(model: Any, patches_PD: Tensor, grid_3: Tensor, frames: int) -> Any:
    """The vision tower's output for so many frames of one grid, as transformers returns it."""
    everything = torch.tensor([0, len(patches_PD)], dtype=torch.int32)  # to the stock loop, all frames are one
    grids = grid_3.expand(frames, -1)
    return model.get_image_features(patches_PD, grids, return_dict=True, cu_seqlens=everything, frames=frames)


def frames_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    frames: int = 1,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' scaled-dot-product attention, [1, A, P, D] to [1, P, A, D], within each of ``frames`` frames of
    equally many patches."""

    def apart(packed_1APD: Tensor) -> Tensor:
        return packed_1APD[0].unflatten(1, (frames, -1)).transpose(0, 1)

    output_NPAD, _ = sdpa_attention_forward(module, apart(query), apart(key), apart(value), attention_mask, **kwargs)
    return output_NPAD.flatten(0, 1)[None], None


AttentionInterface.register(FRAMES_ATTENTION, frames_attention)
