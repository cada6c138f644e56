"""How many tokens the longest prompt of an episode takes, before anything runs.

Numbers of Qwen3-VL's vocabulary and chat template, counted with the published byte-pair ranks; those of the tiny model
by its own tokenizer, which spells text in bytes. A text of the user's cannot be counted here: there is a lower and an
upper estimate of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from visionrl.checks.derived import uses_vision
from visionrl.job import DEFAULT_ENVIRONMENT, JobSpec, TinyModel

BUILT_IN_PROMPT = 816
"""Tokens of the built-in system prompt, with frames (801 with text)."""
BUILT_IN_PROMPT_TINY = 2920
"""The same for the tiny model."""
OTHER_PROMPT = (10, 1000)
"""Tokens of the built-in prompt of another environment, which is not known here: at least, and at most."""
TOOLS = 277
"""Tokens of the tool's schema and the chat template's words around it. The tiny model's template leaves them out."""
TURN = 5
"""Tokens around each message: start, role, line break, end, line break."""
ANSWER_START = 3
"""Tokens with which an answer begins: start, role, line break."""
VISION_MARKS = 2
"""Tokens around each frame."""
EARLIER_FRAME = 4
"""Tokens that stand for the frame of an earlier turn."""
SHORTEST_CALL, SHORTEST_CALL_TINY = 21, 5
"""Tokens of a call with one action."""
SHORTEST_STATE = 40
"""Tokens of the state as text, at least."""

PATCH = 16
QWEN_CELL = 2 * PATCH
"""Side in pixels of one visual token: patches of 16 px, merged 2 × 2."""
QWEN_MIN_PIXELS = 256 * 256
"""Smaller frames are enlarged."""

# Characters per token of a text that is not known: at most, and at least.
_MOST_CHARACTERS, _FEWEST_CHARACTERS = 6.0, 3.0


@dataclass(frozen=True)
class Context:
    """Tokens of the longest prompt and its answer, by origin."""

    system: int
    tools: int
    frames: int
    visual_tokens: int
    """Of each frame."""
    answers: int
    """Of earlier turns, with what stands for their frames."""
    around: int
    """Of the chat template and the state as text."""
    max_tokens: int

    @property
    def total(self) -> int:
        return self.prompt + self.max_tokens

    @property
    def prompt(self) -> int:
        return self.system + self.tools + self.frames * self.visual_tokens + self.answers + self.around

    def __str__(self) -> str:
        listed = [f"system prompt {self.system}", f"tool {self.tools}"]
        listed += [f"{self.frames} × {self.visual_tokens} for frames"] if self.frames else []
        listed += [f"earlier turns {self.answers}"] if self.answers else []
        return f"{', '.join(listed)}, {self.around} around them, and an answer of {self.max_tokens}"


def shortest_context(spec: JobSpec) -> Context:
    """What the last turn of a segment takes at least: every earlier answer is a call with one action."""
    return _context(spec, SHORTEST_CALL_TINY if _tiny(spec) else SHORTEST_CALL, _MOST_CHARACTERS)


def longest_context(spec: JobSpec) -> Context:
    """What it takes where every earlier answer is as long as it may be."""
    return _context(spec, spec.rollout.policy_config.max_tokens, _FEWEST_CHARACTERS)


def _context(spec: JobSpec, answer: int, characters: float) -> Context:
    policy, vision = spec.rollout.policy_config, uses_vision(spec)
    turns = min(policy.segment_turns, policy.max_llm_calls)
    former = min(policy.history_turns, max(policy.max_llm_calls - turns, 0))
    text = 0 if policy.image_only_mode else SHORTEST_STATE
    seen = VISION_MARKS if vision else 0
    return Context(
        system=_system(spec, characters),
        tools=0 if _tiny(spec) else TOOLS,
        frames=turns if vision else 0,
        visual_tokens=visual_tokens(spec) if vision else 0,
        answers=(turns - 1) * (answer + TURN) + former * (answer + EARLIER_FRAME + 2 * TURN),
        around=turns * (TURN + seen + text) + ANSWER_START,
        max_tokens=policy.max_tokens,
    )


def _system(spec: JobSpec, characters: float) -> int:
    prompt = spec.rollout.policy_config.system_prompt
    if prompt is None and spec.rollout.env_name != DEFAULT_ENVIRONMENT:
        return OTHER_PROMPT[characters == _FEWEST_CHARACTERS]
    if prompt is None:
        return BUILT_IN_PROMPT_TINY if _tiny(spec) else BUILT_IN_PROMPT
    return math.floor(len(prompt) / characters) + (TURN if prompt else 0)


def visual_tokens(spec: JobSpec) -> int:
    """Tokens of one frame."""
    side = spec.rollout.env_config.image_size
    if _tiny(spec):
        return (side // (PATCH * (spec.model.tiny or TinyModel()).spatial_merge_size)) ** 2
    return (resized(side) // QWEN_CELL) ** 2


def resized(side: int) -> int:
    """Side in pixels to which Qwen3-VL's processor scales a square frame."""
    cells = max(round(side / QWEN_CELL), 1)
    if (cells * QWEN_CELL) ** 2 < QWEN_MIN_PIXELS:
        cells = math.ceil(math.sqrt(QWEN_MIN_PIXELS) / QWEN_CELL)
    return cells * QWEN_CELL


def _tiny(spec: JobSpec) -> bool:
    return spec.model.base == "tiny"
