"""Demonstrations as token ids."""

from __future__ import annotations

from typing import Any

from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Sample
from visionrl_trainer.sft.teacher import Demonstration


class Tokens:
    """Demonstrations as samples, by the processor's chat template; each distinct prompt is tokenised once."""

    def __init__(self, policy: Policy, tools: list[dict[str, Any]] | None, per_image: int) -> None:
        self.tokenizer, self.processor = policy.processor.tokenizer, policy.processor
        self.tools, self.per_image = tools, per_image
        self._ids: dict[str, tuple[int, ...]] = {}

    def sample(self, demonstration: Demonstration) -> Sample:
        """The decision as prompt and completion ids; logprobs stay empty."""
        prompt = self.processor.apply_chat_template(
            [_template_message(message) for message in demonstration.messages],
            tools=self.tools,
            add_generation_prompt=True,
            tokenize=False,
        )
        placeholder = self.processor.image_token
        prompt_ids = self._encode(prompt.replace(placeholder, placeholder * self.per_image))
        completion_ids = (*self._encode(demonstration.label), self.tokenizer.eos_token_id)
        return Sample(prompt_ids, completion_ids, (), demonstration.images, model="teacher")

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            self._ids[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._ids[text]


def _template_message(message: dict[str, Any]) -> dict[str, Any]:
    """A recorded message as the chat template takes it: images by place, not by hash."""
    if isinstance(message["content"], str):
        return message
    parts = [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
    return {**message, "content": parts}
