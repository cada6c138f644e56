"""The one tool of the policy: its name, its schema, and the text of a call.

The task app sends the schema and parses calls; the teacher's labels and the tiny model's tokenizer write them. All
use the format defined here. The text is the Hermes form that Qwen3-VL emits and vLLM's ``hermes`` parser reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TOOL_NAME = "interact_many"

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


def tool_schema(actions: Sequence[str], max_actions: int, description: str) -> dict[str, Any]:
    """The tool of an environment with these actions, in OpenAI's form; a call carries 1 to ``max_actions`` of them."""
    return {
        "type": "function",
        "function": {
            "name": TOOL_NAME,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {
                    "actions": {
                        "type": "array",
                        "description": f"1 to {max_actions} actions, played in order.",
                        "items": {"type": "string", "enum": list(actions)},
                        "minItems": 1,
                        "maxItems": max_actions,
                    }
                },
                "required": ["actions"],
                "additionalProperties": False,
            },
        },
    }
