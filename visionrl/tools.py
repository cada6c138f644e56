"""The one tool of the policy: its name, its schema, and the text of a call.

The task app sends the schema and parses calls; the teacher's labels and the tiny model's tokenizer write them. All
use the format defined here. The text is the Hermes form that Qwen3-VL emits and vLLM's ``hermes`` parser reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TOOL_NAME = "interact_many"

ACTIONS: tuple[str, ...] = (
    "noop",
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "do",
    "sleep",
    "place_stone",
    "place_table",
    "place_furnace",
    "place_plant",
    "make_wood_pickaxe",
    "make_stone_pickaxe",
    "make_iron_pickaxe",
    "make_wood_sword",
    "make_stone_sword",
    "make_iron_sword",
)
"""Crafter's actions in the order of its action space (indices 0–16)."""

# Pieces of a call; the tiny model's tokenizer has one token for each of them.
TOOL_CALL_OPEN, TOOL_CALL_CLOSE = "<tool_call>", "</tool_call>"
CALL_HEAD = f'\n{{"name": "{TOOL_NAME}", "arguments": {{"actions": ['
CALL_SEPARATOR = ", "
CALL_TAIL = "]}}\n"


def tool_call_text(actions: Sequence[str]) -> str:
    """The call that plays ``actions``, as the model writes it (without the end-of-turn token).

    >>> tool_call_text(["move_left", "do"])
    '<tool_call>\\n{"name": "interact_many", "arguments": {"actions": ["move_left", "do"]}}\\n</tool_call>'
    """
    listed = CALL_SEPARATOR.join(json.dumps(action) for action in actions)
    return f"{TOOL_CALL_OPEN}{CALL_HEAD}{listed}{CALL_TAIL}{TOOL_CALL_CLOSE}"


def tool_schema(max_actions: int) -> dict[str, Any]:
    """The tool in OpenAI's form; a call carries 1 to ``max_actions`` actions."""
    return {
        "type": "function",
        "function": {
            "name": TOOL_NAME,
            "description": "Play actions in the Crafter world, one after another.",
            "parameters": {
                "type": "object",
                "properties": {
                    "actions": {
                        "type": "array",
                        "description": f"1 to {max_actions} actions, played in order.",
                        "items": {"type": "string", "enum": list(ACTIONS)},
                        "minItems": 1,
                        "maxItems": max_actions,
                    }
                },
                "required": ["actions"],
                "additionalProperties": False,
            },
        },
    }
