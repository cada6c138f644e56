"""Builds the tiny Qwen3-VL: a complete model directory that transformers and vLLM load like the real one.

Same recipe, same weights, bit for bit, in any process and on any CPU: they are drawn with NumPy (torch's normal
distribution differs between vector widths) in the order of the parameters' names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionrl.adapters import write_manifest
from visionrl.crafter import ACTIONS
from visionrl.folders import is_whole, place
from visionrl.job import EnvSettings, TinyModel
from visionrl.tiny import tokenizer as tiny_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

PATCH = 16
"""Side of a vision patch in pixels, as in Qwen3-VL."""
HEAD_DIM = 32
"""Width of an attention head, whatever the hidden size: the smallest that vLLM's CPU attention computes."""
MAX_POSITIONS = 8192
WEIGHT_STD = 0.02
# With the usual 0.02 a patch's position would drown in its content (rms about 0.8), and navigation is not learned.
POSITION_STD = 0.5
RECIPE_VERSION = 1
"""Raise it with any change to what is built: it is part of the digest."""
RECIPE_FILE = "recipe.json"


def visual_tokens(shape: TinyModel, env: EnvSettings) -> int:
    """Tokens that one frame takes in the prompt."""
    return (env.image_size // (PATCH * shape.spatial_merge_size)) ** 2


def actions_of(env: EnvSettings) -> Sequence[str]:
    """The actions that are tokens: those that the environment's settings name, else Crafter's."""
    return env.action_names or ACTIONS


def recipe(shape: TinyModel, env: EnvSettings) -> dict[str, object]:
    """Everything that the built directory depends on."""
    return {
        "version": RECIPE_VERSION,
        "shape": shape.model_dump(),
        "imageSize": env.image_size,
        "patch": PATCH,
        "headDim": HEAD_DIM,
        "actions": list(actions_of(env)),
        "addedTokens": list(tiny_tokenizer.added_tokens(actions_of(env))),
        "chatTemplate": tiny_tokenizer.CHAT_TEMPLATE,
    }


def recipe_digest(shape: TinyModel, env: EnvSettings) -> str:
    """SHA-256 (hex) of the recipe."""
    return hashlib.sha256(json.dumps(recipe(shape, env), sort_keys=True).encode()).hexdigest()


def build_tiny(shape: TinyModel, env: EnvSettings, directory: Path) -> Path:
    """The model directory ``<directory>/tiny-<digest>``, built if it is not there whole: a damaged file is not used.

    It appears in one rename, so a reader never sees half of it and concurrent builders do not disturb each other.
    Raises ``ValueError`` for a shape that cannot be built.
    """
    _check(shape, env)
    digest = recipe_digest(shape, env)
    target = directory / f"tiny-{digest[:16]}"
    if is_whole(target):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".tiny-", dir=directory))
    try:
        _write(shape, env, draft)
        (draft / RECIPE_FILE).write_text(json.dumps(recipe(shape, env) | {"digest": digest}, indent=1))
        write_manifest(draft)
        draft.chmod(0o755)
        place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _check(shape: TinyModel, env: EnvSettings) -> None:
    if shape.vision_hidden_size % (4 * _vision_heads(shape)):
        raise ValueError(
            f"model.tiny.visionHiddenSize {shape.vision_hidden_size} must be a multiple of 32 (or 4, below 64)"
        )
    side = PATCH * shape.spatial_merge_size
    if env.image_size % side:
        raise ValueError(f"rollout.envConfig.imageSize {env.image_size} must be a multiple of {side}")


def _write(shape: TinyModel, env: EnvSettings, directory: Path) -> None:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

    tokenizer = tiny_tokenizer.build_tokenizer(actions_of(env))
    tiny_tokenizer.save_tokenizer(tokenizer, directory)
    _processor(shape, env, PreTrainedTokenizerFast.from_pretrained(directory)).save_pretrained(directory)
    with torch.random.fork_rng():  # the constructor draws weights of its own
        model = Qwen3VLForConditionalGeneration._from_config(_config(shape, env, tokenizer), dtype=torch.float32)
    _draw_weights(model, shape.seed)
    model.save_pretrained(directory)


def _config(shape: TinyModel, env: EnvSettings, tokenizer: Tokenizer) -> Qwen3VLConfig:
    from transformers import Qwen3VLConfig

    frequencies = HEAD_DIM // 2
    spatial = frequencies // 3  # of them for height and for width; time takes the rest
    ids = tokenizer.get_vocab()
    turn_end, end_of_text = ids[tiny_tokenizer.TURN_END], ids[tiny_tokenizer.END_OF_TEXT]
    return Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": MAX_POSITIONS,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [frequencies - 2 * spatial, spatial, spatial],
                "mrope_interleaved": True,
            },
            "eos_token_id": turn_end,
            "bos_token_id": end_of_text,
            "pad_token_id": end_of_text,
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": 2 * shape.vision_hidden_size,
            "num_heads": _vision_heads(shape),
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": shape.spatial_merge_size,
            "out_hidden_size": shape.hidden_size,
            "num_position_embeddings": (env.image_size // PATCH) ** 2,
            "deepstack_visual_indexes": list(range(min(shape.vision_depth, shape.layers))),
        },
        image_token_id=ids[tiny_tokenizer.IMAGE_PAD],
        video_token_id=ids[tiny_tokenizer.VIDEO_PAD],
        vision_start_token_id=ids[tiny_tokenizer.VISION_START],
        vision_end_token_id=ids[tiny_tokenizer.VISION_END],
        tie_word_embeddings=True,
    )


def _vision_heads(shape: TinyModel) -> int:
    return max(1, shape.vision_hidden_size // 32)


def _processor(shape: TinyModel, env: EnvSettings, tokenizer: object) -> Qwen3VLProcessor:
    """Takes a frame of the environment's size as it is; another image is scaled to as many pixels."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    pixels = env.image_size**2
    common = {
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": shape.spatial_merge_size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**common),
        video_processor=Qwen3VLVideoProcessor(**common),
        tokenizer=tokenizer,
        chat_template=tiny_tokenizer.CHAT_TEMPLATE,
    )


def _draw_weights(model: Qwen3VLForConditionalGeneration, seed: int) -> None:
    """Norms 1, biases 0, the rest normal; overwrites whatever the constructor drew."""
    import torch

    rng = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                std = POSITION_STD if name.endswith("pos_embed.weight") else WEIGHT_STD
                values = rng.standard_normal(tuple(parameter.shape), dtype=np.float32) * np.float32(std)
                parameter.copy_(torch.from_numpy(values))
