"""A Qwen3-VL as wide as the 4B, with few layers: the true vocabulary and special tokens, random weights in bfloat16.

What is wrong at 2,560 hidden units, 32 query heads on 8 key heads, 151,936 tokens and 81 visual tokens per frame shows
here before anybody pays for a GPU. With 2 of 36 layers it has 0.8 billion parameters, 1.6 GB on disk. The shape is that
of ``config.json`` of Qwen3-VL-4B-Instruct; the byte-pair ranks of its tokenizer come with the package ``dashscope``.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.convert_slow_tokenizer import TikTokenConverter

if TYPE_CHECKING:
    from visionrl_trainer.model.policy import Policy

VOCABULARY = 151_936
FIRST_SPECIAL = 151_643
# In the order of their ids, from FIRST_SPECIAL on.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
ADDED_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
# How text is cut before byte pairs are merged (Qwen's technical report: digits one by one).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen's format of messages and tools: ChatML, the tools at the end of the system message, calls as JSON between tags.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}{{ content }}
  {%- else -%}
    {%- for piece in content or [] -%}
      {%- if piece.type in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
      {%- elif piece.type == 'text' -%}{{ piece.text }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set system = text_of(messages[0].content) if messages[0].role == 'system' else '' -%}
{%- if tools -%}
  {%- set signatures = tools | map('tojson') | join('\\n') -%}
  {%- set system = system ~ '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n'
      ~ 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>\\n' ~ signatures
      ~ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within '
      ~ '<tool_call></tool_call> XML tags:\\n<tool_call>\\n'
      ~ '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' -%}
{%- endif -%}
{%- if system -%}{{ '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
  {{ '<|im_start|>' ~ message.role ~ '\\n' ~ text_of(message.content) }}
  {%- for call in message.tool_calls or [] -%}
    {%- set arguments = call.function.arguments -%}
    {{ '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": '
       ~ (arguments if arguments is string else arguments | tojson) ~ '}\\n</tool_call>' }}
  {%- endfor -%}
  {{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def build_true_width(folder: Path, layers: int = 2, vision_depth: int = 6, seed: int = 0) -> Path:
    """Write a model directory that transformers and vLLM load like the published one; returns it."""
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    config = true_width_config(layers, vision_depth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [_id("<|im_end|>"), _id("<|endoftext|>")]
    model.generation_config.pad_token_id = _id("<|endoftext|>")
    model.save_pretrained(folder)
    _write_processor(folder)
    return folder


def full_policy(folder: Path, device: torch.device, layers: int = 36, vision_depth: int = 24) -> Policy:
    """The published shape, 4.4 billion parameters unless it has fewer layers, with random weights on a device;
    ``folder`` gets its processor."""
    from visionrl_trainer.model.policy import ATTENTIONS, Policy

    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    _write_processor(folder)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration._from_config(
            true_width_config(layers, vision_depth), dtype=torch.bfloat16, attn_implementation=ATTENTIONS
        )
    return Policy(model.eval(), AutoProcessor.from_pretrained(folder), device, torch.bfloat16)


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of Qwen3-VL. Every special token has its published id."""
    package = importlib.util.find_spec("dashscope")
    assert package is not None, "needs the package dashscope: make setup"
    assert package.submodule_search_locations is not None
    ranks = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    converter = TikTokenConverter(str(ranks), pattern=SPLIT, extra_special_tokens=list(SPECIAL_TOKENS))
    made = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=262_144,
    )
    made.add_tokens(list(ADDED_TOKENS))
    made.chat_template = CHAT_TEMPLATE
    found = [made.convert_tokens_to_ids(token) for token in (*SPECIAL_TOKENS, *ADDED_TOKENS)]
    assert found == list(range(FIRST_SPECIAL, FIRST_SPECIAL + len(found))), found
    return made


def true_width_config(layers: int, vision_depth: int) -> Qwen3VLConfig:
    """The 4B's shape but for the number of layers (36 and 24 in the published model)."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "bos_token_id": _id("<|endoftext|>"),
            "eos_token_id": _id("<|im_end|>"),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": 1024,
            "num_heads": 16,
            "intermediate_size": 4096,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [vision_depth * quarter // 4 for quarter in (1, 2, 3)],
            "num_position_embeddings": 2304,
        },
        image_token_id=_id("<|image_pad|>"),
        video_token_id=_id("<|video_pad|>"),
        vision_start_token_id=_id("<|vision_start|>"),
        vision_end_token_id=_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _id(token: str) -> int:
    return FIRST_SPECIAL + (*SPECIAL_TOKENS, *ADDED_TOKENS).index(token)


def _write_processor(folder: Path) -> None:
    shared = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image: dict[str, Any] = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
    }
    video: dict[str, Any] = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"longest_edge": 25_165_824, "shortest_edge": 4_096},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(shared | image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(shared | video))
