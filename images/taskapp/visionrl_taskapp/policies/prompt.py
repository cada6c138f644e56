"""A model's prompt in each turn.

The system prompt is the environment's or the job's. The context is one frame, or a segment of turns that grows until
the next segment begins. Responses from before the segment stay as the model's own turns, with a short text in place of
their frames and without thoughts: the roles alternate as chat templates require, and a prompt's length is bounded.

Text that the model or the environment wrote is shown without control tokens (`without_control_tokens`), so that a
prompt has the frames and turns that were sent and no others.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visionrl.checks import takes_images
from visionrl.rollout import PolicyConfig
from visionrl_taskapp.envs.protocol import Description, PromptStyle
from visionrl_taskapp.policies.toolcalls import without_thoughts

EARLIER_FRAME = "(an earlier frame)"
EARLIER_STATE = "(an earlier state)"

Message = dict[str, Any]

# Control tokens as text: ends of turns and image placeholders of the families that `visionrl.checks` knows as vision
# models. A tokenizer reads them as tokens wherever they occur. Matches the first character of each.
_CONTROL_TOKEN = re.compile(
    r"<(?=\|[^|<>\s]{1,64}\|>)"  # Qwen, Llama, Phi: <|im_end|>, <|image_pad|>
    r"|<(?=/?(?:s|bos|eos|image|img|video|IMG_CONTEXT|image_soft_token|(?:start|end)_of_[a-z]+)>)"  # Gemma, InternVL
    r"|\[(?=(?:/?INST|IMG|IMG_BREAK|IMG_END)\])"  # Pixtral
)


@dataclass(frozen=True)
class Frame:
    """An image of a prompt: the SHA-256 of its pixels and its PNG."""

    sha256: str
    png: bytes


def sends_frames(config: PolicyConfig) -> bool:
    """Whether prompts carry frames: `use_vision`, else `supports_vision`, else by the model's name.

    Without a model (the scripted policy), prompts are those of a vision model.
    """
    for explicit in (config.use_vision, config.supports_vision):
        if explicit is not None:
            return explicit
    return not config.model or takes_images(config.model)


def has_control_tokens(text: str) -> bool:
    """Whether a text spells a control token."""
    return _CONTROL_TOKEN.search(text) is not None


def without_control_tokens(text: str) -> str:
    """The text with each control token that it spells broken up by a space: `<|im_end|>` becomes `< |im_end|>`."""
    return _CONTROL_TOKEN.sub(r"\g<0> ", text)


@dataclass(frozen=True)
class PastTurn:
    """What an earlier prompt showed last, and the response to it."""

    frame: Frame | None
    text: str | None
    response: str


def system_prompt(config: PolicyConfig, game: Description) -> str:
    """The job's, else the environment's for this configuration."""
    if config.system_prompt is not None:
        return config.system_prompt
    return game.prompt(PromptStyle(sends_frames(config), config.max_actions, config.segment_turns))


def build_messages(
    config: PolicyConfig, prompt: str, history: Sequence[PastTurn], frame: Frame | None, state_text: str | None
) -> list[Message]:
    """The prompt of one decision, images by hash: ``{"type": "image", "sha256": …}``.

    `prompt` is the system prompt; empty sends none. `history` holds the episode's earlier turns, oldest first. Those of
    the current segment are shown in full, so the prompt continues the segment's previous one; of those before it, the
    last `history_turns` responses are shown without their frames. A text policy passes no frame and gets string
    contents; in image-only mode `state_text` is None.
    """
    messages: list[Message] = [{"role": "system", "content": prompt}] if prompt else []
    start = segment_start(config, len(history))
    for past in history[start - min(config.history_turns, start) : start]:
        messages.append({"role": "user", "content": EARLIER_STATE if past.frame is None else EARLIER_FRAME})
        messages.append(
            {"role": "assistant", "content": without_control_tokens(without_thoughts(past.response).strip())}
        )
    for past in history[start:]:
        messages.append({"role": "user", "content": _observation(past.frame, past.text)})
        messages.append({"role": "assistant", "content": without_control_tokens(past.response)})
    messages.append({"role": "user", "content": _observation(frame, state_text)})
    return messages


def frames_of(config: PolicyConfig, history: Sequence[PastTurn], frame: Frame | None) -> list[Frame]:
    """The frames of that prompt, in order."""
    shown = [past.frame for past in history[segment_start(config, len(history)) :]]
    return [image for image in (*shown, frame) if image is not None]


def segment_start(config: PolicyConfig, turn: int) -> int:
    """First turn of the segment that this turn belongs to."""
    return turn - turn % config.segment_turns


def with_pixels(messages: Sequence[Message], frames: Sequence[Frame]) -> list[Message]:
    """The same messages with each image as a PNG data URL, as a server takes it."""
    urls = {frame.sha256: f"data:image/png;base64,{base64.b64encode(frame.png).decode()}" for frame in frames}

    def part(content: Message) -> Message:
        if content["type"] != "image":
            return content
        return {"type": "image_url", "image_url": {"url": urls[content["sha256"]]}}

    return [
        message if isinstance(message["content"], str) else {**message, "content": list(map(part, message["content"]))}
        for message in messages
    ]


def _observation(frame: Frame | None, state_text: str | None) -> str | list[Message]:
    if state_text is not None:
        state_text = without_control_tokens(state_text)
    if frame is None:
        return state_text or ""
    image = {"type": "image", "sha256": frame.sha256}
    return [{"type": "text", "text": state_text}, image] if state_text is not None else [image]
