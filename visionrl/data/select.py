"""What is kept: pure functions from an episode or a decision to the reason for dropping it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence

from visionrl.data.config import Examples, Selection
from visionrl.data.png import png_size
from visionrl.data.read import Session, TracedDecision

ERRORS = ("inference_error", "cancelled")
TIMEOUTS = ("turn_timeout", "max_time")
"""Abort reasons; max_ops is a limit that the user set, not a failure."""

_CHARACTERS_PER_TOKEN = 3.5
_TOKEN_PIXELS = 32 * 32
"""Of one visual token: Qwen3-VL's patch of 16 px, merged 2 × 2."""


def episode_fault(session: Session, decisions: Sequence[TracedDecision], rules: Selection) -> str | None:
    """Why an episode is dropped; None keeps it. The first reason is given."""
    if rules.filter_errors and session.abort_reason in ERRORS:
        return "error"
    if rules.filter_timeouts and session.abort_reason in TIMEOUTS:
        return "timeout"
    if not decisions:
        return "no decision"
    if len(decisions) < rules.min_steps:
        return "too few steps"
    if rules.max_steps is not None and len(decisions) > rules.max_steps:
        return "too many steps"
    if session.achievements < rules.min_achievements:
        return "too few achievements"
    if rules.detect_loops and is_loop(decisions, rules.max_repeated_actions, rules.min_unique_states):
        return "loop"
    return None


def is_loop(decisions: Sequence[TracedDecision], max_repeated: int, min_unique: int) -> bool:
    """Whether one action is played more than `max_repeated` times in a row, over all turns, or fewer than `min_unique`
    different observations are seen."""
    played = itertools.chain.from_iterable(each.actions for each in decisions)
    repeated = max((len(list(group)) for _, group in itertools.groupby(played)), default=0)
    return repeated > max_repeated or len({observation(each) for each in decisions}) < min_unique


def observation(decision: TracedDecision) -> str:
    """What the policy saw last: the last message of its prompt."""
    return json.dumps(decision.messages[-1]["content"], sort_keys=True)


def decision_fault(decision: TracedDecision, images: Sequence[bytes | None], rules: Examples) -> str | None:
    """Why a decision is dropped; None keeps it. `images` are the PNGs of its frames."""
    if rules.filter_empty_responses and not decision.target.strip():
        return "empty response"
    if rules.require_valid_tool_calls and decision.label is None and decision.error is not None:
        return "invalid tool call"
    sizes = []
    for png in images:
        if png is None:
            return "image missing"
        try:
            sizes.append(png_size(png))
        except ValueError:
            return "image damaged"
    if rules.max_sequence_length is not None and sequence_length(decision, sizes) > rules.max_sequence_length:
        return "too long"
    return None


def sequence_length(decision: TracedDecision, sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of prompt and answer: the server's count, or an estimate where there is none (the teacher's)."""
    if decision.tokens is not None:
        return decision.tokens
    text = decision.target + "".join(_text(message["content"]) for message in decision.messages)
    pixels = sum(width * height for width, height in sizes)
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN) + math.ceil(pixels / _TOKEN_PIXELS)


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def content_key(decision: TracedDecision) -> bytes:
    """The same for two decisions with the same prompt, frames included, and the same answer."""
    content = json.dumps([decision.messages, decision.target], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()
