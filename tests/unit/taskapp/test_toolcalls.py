"""Which responses of a model are played, and what is reported as wrong with the others."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from visionrl.crafter import ACTIONS
from visionrl.rollout import ToolCall
from visionrl.tools import tool_call_text
from visionrl_taskapp.policies import toolcalls
from visionrl_taskapp.policies.toolcalls import Actions, InvalidResponse, message_text, without_thoughts

CALL = '{"name": "interact_many", "arguments": {"actions": ["move_left", "do"]}}'
PLAN = ("move_left", "do")
OTHER_CALL = '<tool_call>{"name": "interact_many", "arguments": {"actions": ["sleep"]}}</tool_call>'


def parse(message: Mapping[str, Any], max_actions: int) -> Actions | InvalidResponse:
    return toolcalls.parse(message, ACTIONS, max_actions)


def field(arguments: object, name: str = "interact_many") -> dict[str, Any]:
    return {"content": None, "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    "message",
    [
        field('{"actions": ["move_left", "do"]}'),
        field({"actions": ["move_left", "do"]}),
        {"content": f"<tool_call>\n{CALL}\n</tool_call>"},
        {"content": f"I see a tree {{to the left}}.\n<tool_call>{CALL}</tool_call>"},
        {"content": f"<tool_call>\n{CALL}"},  # ended by the stop token before the closing tag
        {"content": f"Sure:\n```json\n{CALL}\n```"},
        {"content": CALL},
        {"content": f'{{"thought": "wood"}} then {CALL}'},
        {"content": json.dumps({"name": "interact_many", "arguments": json.dumps({"actions": list(PLAN)})})},
        {"content": [{"type": "text", "text": "A tree. "}, {"type": "text", "text": f"<tool_call>{CALL}</tool_call>"}]},
        {"content": f"<think>\n{OTHER_CALL}? No.\n</think>\n<tool_call>{CALL}</tool_call>"},
        {"content": f"{OTHER_CALL}? No.\n</think>\n<tool_call>{CALL}</tool_call>"},
        {"content": f"<think>{OTHER_CALL}</think>{CALL}"},
        field('{"actions": ["move_left", "do"]}') | {"content": "<think>Wood.</think>"},
    ],
    ids=[
        *(
            "field",
            "field-object",
            "tags",
            "after-text",
            "unclosed",
            "fenced",
            "bare",
            "second-object",
            "nested-string",
        ),
        *("parts", "after-thought", "thought-opened-by-the-template", "bare-after-thought", "field-after-thought"),
    ],
)
def test_a_call_is_played_in_every_form_that_models_write(message: dict[str, Any]) -> None:
    parsed = parse(message, 5)
    assert isinstance(parsed, Actions)
    assert parsed.actions == PLAN
    assert [call.model_dump() for call in parsed.calls] == [
        {"tool_name": "interact_many", "arguments": {"actions": list(PLAN)}}
    ]


def test_calls_that_the_server_parsed_win_over_text() -> None:
    parsed = parse(field('{"actions": ["noop"]}') | {"content": CALL}, 5)
    assert isinstance(parsed, Actions)
    assert parsed.actions == ("noop",)


@pytest.mark.parametrize(
    ("message", "kind", "word"),
    [
        ({"content": "I go left."}, "no_call", "interact_many"),
        ({"content": ""}, "no_call", "no tool call"),
        ({"content": None}, "no_call", "no tool call"),
        ({}, "no_call", "no tool call"),
        ({"content": f"<tool_call>{CALL}</tool_call>" * 2}, "many_calls", "2 tool calls"),
        ({"content": '<tool_call>{"name": </tool_call>'}, "bad_json", "JSON"),
        ({"content": "<tool_call>[1]</tool_call>"}, "bad_json", "list"),
        (field('{"actions": ["do"'), "bad_json", "JSON"),
        (field('{"actions": ["do"]}', name="act"), "unknown_tool", "'act'"),
        (field("{}"), "bad_arguments", "actions must be a list"),
        (field('{"actions": "do"}'), "bad_arguments", "not str"),
        (field('{"actions": []}'), "bad_arguments", "give 1 to 3"),
        (field('{"actions": ["do", "do", "do", "do"]}'), "bad_arguments", "4 actions; give 1 to 3"),
        (field('{"actions": ["do", "jump"]}'), "bad_arguments", "actions[1] is 'jump'"),
        (field('{"actions": [5]}'), "bad_arguments", "actions[0] is 5"),
        (field('{"actions": ["do"], "times": 2}'), "bad_arguments", "'times'"),
        (field("[]"), "bad_arguments", "not list"),
        ({"tool_calls": [{}]}, "bad_json", "without a function"),
        ({"tool_calls": [None]}, "bad_json", "without a function"),
        ({"tool_calls": "x", "content": 5}, "no_call", "no tool call"),
        ({"content": f"<think>{OTHER_CALL}"}, "no_call", "no tool call"),
        ({"content": f"<think>{OTHER_CALL}</think> Hm."}, "no_call", "no tool call"),
        (field('{"actions": ["do"]}') | {"content": "<think>Maybe "}, "no_call", "inside <think>"),
        ({"content": f"{CALL[:-9]}"}, "no_call", "no tool call"),
        ({"content": f"<tool_call>{CALL[:-9]}"}, "bad_json", "JSON"),
        ({"content": f'{{"plan": {CALL}, "next": tr'}, "no_call", "no tool call"),
        ({"content": f'{{"plan": {CALL}, "next": "go'}, "no_call", "no tool call"),
        ({"content": f"<tool_call>{CALL}\n{CALL}</tool_call>"}, "bad_json", "JSON"),
        (field('{"actions": ["\\ud800"]}'), "bad_arguments", "surrogate"),
        (field('{"\\ud83d": 1}'), "bad_arguments", "surrogate"),
        (field("{}", name="\ud800"), "bad_arguments", "surrogate"),
        (field('{"actions": [NaN]}'), "bad_arguments", "not finite"),
        (field('{"actions": [1e999]}'), "bad_arguments", "not finite"),
        (field(f'{{"actions": [{2**64}]}}'), "bad_arguments", "64 bits"),
        (field(f'{{"actions": {"[" * 200}{"]" * 200}}}'), "bad_arguments", "levels of brackets"),
        (field(f'{{"actions": {"[" * 900}{"]" * 900}}}'), "bad_arguments", "levels of brackets"),
    ],
)
def test_an_invalid_answer_says_what_is_wrong(message: dict[str, Any], kind: str, word: str) -> None:
    parsed = parse(message, 3)
    assert isinstance(parsed, InvalidResponse)
    assert parsed.kind == kind
    assert word in parsed.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["actions", *ACTIONS]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["name", "arguments", "actions"]), inner)
    ),
    max_leaves=12,
)


@given(st.text() | st.text(alphabet='{}[]":,<tool_call/>\\ \n'))
def test_no_text_whatever_breaks_the_parser(text: str) -> None:
    for message in ({"content": text}, {"content": f"<tool_call>{text}</tool_call>"}, field(text)):
        assert isinstance(parse(message, 5), Actions | InvalidResponse)
        assert isinstance(message_text(message), str)


@given(JSON, JSON, JSON)
@example({}, {}, {"actions": {"\ud800": ["\udfff", math.inf, 2**64]}})
def test_no_json_whatever_breaks_the_parser(content: object, tool_calls: object, arguments: object) -> None:
    for message in (
        {"content": content, "tool_calls": tool_calls},
        {"tool_calls": [{"function": {"name": content, "arguments": arguments}}]},
        {"content": json.dumps({"name": "interact_many", "arguments": arguments})},
    ):
        parsed = parse(message, 5)
        assert isinstance(parsed, Actions | InvalidResponse)
        assert isinstance(message_text(message), str)
        # What was parsed can be sent, stored and read again.
        for call in parsed.calls:
            assert ToolCall.model_validate_json(call.model_dump_json()) == call
            json.dumps(call.model_dump(), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 100_000 + "}", "{" * 100_000])
def test_hostile_text_is_an_invalid_answer(text: str) -> None:
    assert isinstance(parse({"content": text}, 5), InvalidResponse)
    assert isinstance(parse({"content": f"<tool_call>{text}"}, 5), InvalidResponse)


@given(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=8))
def test_what_the_teacher_writes_is_read_back(actions: list[str]) -> None:
    parsed = parse({"content": tool_call_text(actions)}, 8)
    assert isinstance(parsed, Actions)
    assert parsed.actions == tuple(actions)


def test_an_answers_text_has_the_call_that_the_server_took_out_of_it() -> None:
    message = field('{"actions": ["move_left", "do"]}') | {"content": "A tree."}
    assert message_text(message) == f"A tree.\n{tool_call_text(PLAN)}"


def test_the_text_of_parts_is_joined() -> None:
    assert (
        message_text({"content": [{"type": "text", "text": "A "}, {"type": "image"}, {"type": "text", "text": "B"}]})
        == "A B"
    )


@given(st.text(alphabet="<think>/ab"), st.text(alphabet="ab<>"))
def test_what_follows_the_last_thought_is_kept_and_no_thought_is(thought: str, response: str) -> None:
    assert without_thoughts(f"<think>{thought}</think>{response}").endswith(response)
    assert without_thoughts(f"{thought.replace('<think>', '')}</think>{response}") == response
    assert "</think>" not in without_thoughts(thought)
