"""The tiny model's tokenizer and chat template.

Byte-level BPE, so that any text round-trips, plus one token for each piece of a tool call: every quoted action, the
JSON around them, the tags. A call of n actions and its end-of-turn token are 2n + 4 tokens that decode byte for byte to
``tool_call_text(actions) + "<|im_end|>"``, so the serving side parses them like a full-size model's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionrl.tools import CALL_HEAD, CALL_SEPARATOR, CALL_TAIL, TOOL_CALL_CLOSE, TOOL_CALL_OPEN

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"

SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
"""Tokens that decoding may skip."""
WORDS = ("system", "user", "assistant", "Play", " Crafter")
"""Words of every prompt: one token each. Other text is spelled in bytes."""

# Words keep one leading space, as in Qwen's own splitting; merges never cross these borders.
_WORD_BORDERS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = 'user' if message.role == 'tool' else message.role -%}
{{- '<|im_start|>' + role + '\\n' -}}
{%- if message.role == 'tool' -%}{{- '<tool_response>\\n' -}}{%- endif -%}
{%- if message.content is string -%}
{{- message.content -}}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'text' -%}{{- part.text -}}
{%- else -%}{{- raise_exception('the tiny model reads text and images, not ' ~ part.type) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if not message.content -%}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'tool' -%}{{- '\\n</tool_response>' -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""Qwen's turns, with an assistant's text verbatim. Tool schemas are *not* rendered: spelled in bytes they would be
hundreds of tokens of every prompt, and the model learns the one call it can make from examples."""


def added_tokens(actions: Sequence[str]) -> tuple[str, ...]:
    """The pieces of calls and tool answers that are tokens of their own, kept when decoding."""
    tags = (TOOL_CALL_OPEN, TOOL_CALL_CLOSE, "<tool_response>", "</tool_response>")
    return (*tags, CALL_HEAD, CALL_SEPARATOR, CALL_TAIL, *(json.dumps(action) for action in actions))


def build_tokenizer(actions: Sequence[str]) -> Tokenizer:
    """The tokenizer, the same in every process: nothing in it is trained."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [pair for word in WORDS for pair in _spell(word.replace(" ", "Ġ"))]
    vocabulary = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=list(dict.fromkeys(merges)))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_BORDERS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added_tokens(actions)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` as transformers and vLLM read them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
        "extra_special_tokens": [token for token in SPECIAL_TOKENS if token not in (TURN_END, END_OF_TEXT)],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _spell(word: str) -> list[tuple[str, str]]:
    """Merges that build ``word`` from its characters, left to right."""
    return [(word[:end], word[end]) for end in range(1, len(word))]
