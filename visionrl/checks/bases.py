"""Which base models the trainer can train: the dense Qwen3-VL models, told by name or by their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from visionrl.documents import DocumentError, parse_json, read_text

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
MODEL_TYPE = "qwen3_vl"
ADVICE = "name a dense Qwen3-VL model, such as Qwen/Qwen3-VL-4B-Instruct"

_TRAINABLE = re.compile(r"qwen-?3-?vl", re.IGNORECASE)
_MIXTURE_OF_EXPERTS = re.compile(r"\d+b-a\d+b", re.IGNORECASE)
# Families that are told by their names: of the hubs, and of providers whose models have no weights to train.
_OTHER_FAMILIES = re.compile(
    r"\b(gpt|o[134]-|claude|gemini|grok|gemma|llama|llava|pixtral|m[ia][nx]?istral|mixtral|internvl|phi-?[2345]|molmo"
    r"|smolvlm|idefics|deepseek|glm-?[45]|minicpm|paligemma|florence|qwen(-?vl|1|2|-?3(?!-?vl)))",
    re.IGNORECASE,
)


def is_path(base: str) -> bool:
    """Whether ``model.base`` names a directory rather than a model of the hub (``org/name``)."""
    return base.startswith(("/", "./", "../", "~"))


def is_known_trainable(base: str) -> bool:
    """Whether the name says that the trainer can train it."""
    return base == "tiny" or (_TRAINABLE.search(base) is not None and not _MIXTURE_OF_EXPERTS.search(base))


def base_fault(base: str) -> str | None:
    """Why a model of this name cannot be trained; None where it can, or where the name does not say."""
    if is_path(base) or is_known_trainable(base):
        return None
    name = base.rsplit("/", 1)[-1]
    if _TRAINABLE.search(name):
        return f"{base} is a mixture of experts, which the trainer cannot train; {ADVICE}"
    if _OTHER_FAMILIES.search(name):
        return f"the trainer trains Qwen3-VL alone, and {base} is another model; {ADVICE}"
    return None


def architecture_fault(directory: Path) -> str | None:
    """Why the model in a directory cannot be trained, by its ``config.json``; None where it can, or has none."""
    file = directory / "config.json"
    if not file.is_file():
        return None
    try:
        config = parse_json(read_text(file))
    except (DocumentError, OSError) as error:
        return f"{file} cannot be read: {error}"
    if not isinstance(config, Mapping):
        return f"{file} is not a model's configuration"
    found, architectures = config.get("model_type"), config.get("architectures")
    if found in (None, MODEL_TYPE) and architectures in (None, [ARCHITECTURE]):
        return None
    named = architectures[0] if isinstance(architectures, list) and architectures else found
    return f"the trainer trains Qwen3-VL ({ARCHITECTURE}), and {file} says {str(named)[:80]}; {ADVICE}"
