"""The base model and the adapter on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionrl.job.base import Model, NonNegativeInt, PositiveInt

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of the language model, on which vLLM serves adapters."""


class Lora(Model):
    """Low-rank adapter on the language model's linear layers."""

    r: Annotated[int, Field(ge=1, le=256)] = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input during supervised training. Policy-gradient updates run without it."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of linear layers, such as q_proj; `all-linear` is every linear of the language model (the vision
    tower is frozen: vLLM would not serve an adapter on it)."""


class TinyModel(Model):
    """Shape of the random-weight Qwen3-VL that is built on first use where `base` is `tiny`."""

    hidden_size: PositiveInt = 64
    """Width of the language model."""
    layers: PositiveInt = 2
    """Layers of the language model."""
    heads: PositiveInt = 4
    """Attention heads of the language model."""
    intermediate_size: PositiveInt = 128
    """Width of the MLP."""
    vision_hidden_size: PositiveInt = 64
    """Width of the vision tower."""
    vision_depth: PositiveInt = 1
    """Layers of the vision tower."""
    spatial_merge_size: Literal[1, 2] = 1
    """Patches (16 px) merged into one visual token along each side: an image of n px has (n / 16 / merge)² tokens."""
    seed: NonNegativeInt = 0
    """Seed of the random weights."""


class PolicyModel(Model):
    """The base model and its adapter."""

    base: Annotated[str, Field(min_length=1)]
    """Model id on the hub, a path that every component can read, or `tiny` (built on first use, see `tiny`)."""
    revision: str | None = None
    """Revision of the hub's model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Weights and computation of server and trainer."""
    supports_vision: bool | None = None
    """Overrides the detection of vision models by their name."""
    tiny: TinyModel | None = None
    """Shape of the tiny model; only with `base: tiny`."""
    lora: Lora = Lora()
