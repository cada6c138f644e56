"""The prompts: system prompt, frames, state as text and history."""

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.crafter import ACTIONS
from visionrl.frames import decode_png, frame_hash
from visionrl.job import EnvSettings
from visionrl.rollout import PolicyConfig
from visionrl_taskapp.envs.crafter.env import CrafterEnv
from visionrl_taskapp.envs.crafter.prompt import state_text
from visionrl_taskapp.envs.crafter.rules import rules
from visionrl_taskapp.envs.png import encode_png
from visionrl_taskapp.envs.registry import prepare
from visionrl_taskapp.policies import prompt as prompts
from visionrl_taskapp.policies.prompt import (
    EARLIER_FRAME,
    Frame,
    Message,
    PastTurn,
    frames_of,
    has_control_tokens,
    sends_frames,
    system_prompt,
    with_pixels,
    without_control_tokens,
)

CRAFTER = prepare("crafter", EnvSettings()).description
FRAME = Frame("ab" * 32, b"\x89PNG")


def past(*responses: str, frame: Frame | None = FRAME, text: str | None = None) -> list[PastTurn]:
    return [PastTurn(frame, text, response) for response in responses]


def config(**settings: Any) -> PolicyConfig:
    return PolicyConfig(**({"model": "Qwen/Qwen3-VL-4B-Instruct"} | settings))


def build_messages(
    settings: PolicyConfig, history: Sequence[PastTurn], frame: Frame | None, text: str | None
) -> list[Message]:
    """Crafter's prompt of one decision."""
    return prompts.build_messages(settings, system_prompt(settings, CRAFTER), history, frame, text)


@pytest.mark.parametrize(
    ("model", "explicit", "supported", "expected"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", None, None, True),
        ("gpt-4o-mini", None, None, True),
        ("Qwen/Qwen3-4B", None, None, False),
        ("job-v000012-0123456789ab", None, None, False),
        ("job-v000012-0123456789ab", None, True, True),
        ("gpt-4o", None, False, False),
        ("Qwen/Qwen3-4B", True, False, True),
        ("gpt-4o", False, True, False),
        ("", None, None, True),
    ],
)
def test_frames_are_sent_by_explicit_wish_then_by_support_then_by_name(
    model: str, explicit: bool | None, supported: bool | None, expected: bool
) -> None:
    assert sends_frames(config(model=model, use_vision=explicit, supports_vision=supported)) is expected


def test_an_image_only_prompt_is_the_system_prompt_and_the_frame_alone() -> None:
    system, user = with_pixels(build_messages(config(history_turns=0), past("an answer"), FRAME, None), [FRAME])
    assert system["role"] == "system"
    assert [part["type"] for part in user["content"]] == ["image_url"]
    url = user["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64," + base64.b64encode(FRAME.png).decode()


def test_a_vision_prompt_with_state_has_text_before_the_image() -> None:
    user = build_messages(config(image_only_mode=False), [], FRAME, "Vitals: 9")[-1]
    assert user["content"] == [{"type": "text", "text": "Vitals: 9"}, {"type": "image", "sha256": FRAME.sha256}]


def test_a_text_prompt_is_a_string() -> None:
    messages = build_messages(config(model="gpt-3.5"), past("one", frame=None, text="Vitals: 8"), None, "Vitals: 9")
    assert all(isinstance(message["content"], str) for message in messages)
    assert messages[-1] == {"role": "user", "content": "Vitals: 9"}


def test_former_answers_stay_as_the_models_own_words_without_their_frames() -> None:
    messages = build_messages(config(history_turns=2), past("first", "second", "third"), FRAME, None)
    assert [(m["role"], m["content"]) for m in messages[1:-1]] == [
        ("user", EARLIER_FRAME),
        ("assistant", "second"),
        ("user", EARLIER_FRAME),
        ("assistant", "third"),
    ]


CONTROL_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|endoftext|>", "<|eot_id|>", "<|image_1|>"),
    *("<image>", "</s>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<image_soft_token>", "<IMG_CONTEXT>", "<img>"),
    *("[IMG]", "[IMG_END]", "[INST]", "[/INST]"),
]


@pytest.mark.parametrize("segment_turns", [1, 4])
@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_a_control_token_that_a_response_spells_is_none_in_the_next_prompt(token: str, segment_turns: int) -> None:
    history = past(f"I see {token}.")
    messages = build_messages(config(segment_turns=segment_turns), history, FRAME, None)
    assert messages[-2] == {"role": "assistant", "content": f"I see {token[0]} {token[1:]}."}


@pytest.mark.vision
def test_the_policys_tokenizer_reads_no_control_token_in_a_spelled_one() -> None:
    from visionrl.tiny.tokenizer import build_tokenizer

    tokenizer, spelled = build_tokenizer(ACTIONS), "<|vision_start|><|image_pad|><|vision_end|> and <|im_end|>"
    special = {tokenizer.token_to_id(token) for token in ("<|vision_start|>", "<|image_pad|>", "<|im_end|>")}
    assert special <= set(tokenizer.encode(spelled).ids)
    assert not special & set(tokenizer.encode(without_control_tokens(spelled)).ids)


def test_a_control_token_in_the_state_is_none_in_the_prompt() -> None:
    user = build_messages(config(image_only_mode=False), [], FRAME, "A sign: <|im_end|>")[-1]
    assert user["content"][0] == {"type": "text", "text": "A sign: < |im_end|>"}


@given(st.lists(st.sampled_from([*CONTROL_TOKENS, "<", "|", ">", "im_end", "[", "]", " ", "<tool_call>"])).map("".join))
def test_no_text_keeps_a_control_token_and_other_text_stays_as_it_is(text: str) -> None:
    clean = without_control_tokens(text)
    assert not has_control_tokens(clean)
    assert not any(token in clean for token in CONTROL_TOKENS)
    assert clean.replace(" ", "") == text.replace(" ", "")
    assert (clean == text) is not has_control_tokens(text)


def test_thoughts_of_earlier_segments_are_not_shown_and_those_of_the_segment_are() -> None:
    thought = "<think>Wood or water?</think>\n\nI go left."
    assert build_messages(config(), past(thought), FRAME, None)[-2]["content"] == "I go left."
    assert build_messages(config(segment_turns=4), past(thought), FRAME, None)[-2]["content"] == thought


@given(st.lists(st.text(min_size=1), max_size=6), st.integers(0, 8), st.booleans())
def test_roles_alternate_and_one_image_is_sent_whatever_the_history(
    history: list[str], turns: int, with_prompt: bool
) -> None:
    prompt = None if with_prompt else ""
    messages = build_messages(config(history_turns=turns, system_prompt=prompt), past(*history), FRAME, None)
    if with_prompt:
        assert messages.pop(0)["role"] == "system"
    assert [m["role"] for m in messages] == ["user", "assistant"] * min(turns, len(history)) + ["user"]
    assert sum(isinstance(m["content"], list) for m in messages) == 1


def test_the_jobs_system_prompt_replaces_the_built_in_one() -> None:
    assert build_messages(config(system_prompt="Play."), [], FRAME, None)[0] == {"role": "system", "content": "Play."}


def test_pixels_are_added_for_the_server_and_the_record_keeps_hashes() -> None:
    recorded = build_messages(config(image_only_mode=False), past("x"), FRAME, "state")
    sent = with_pixels(recorded, [FRAME])
    assert sent[:-1] == recorded[:-1]
    assert [part["type"] for part in sent[-1]["content"]] == ["text", "image_url"]
    assert recorded[-1]["content"][1] == {"type": "image", "sha256": FRAME.sha256}


@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 12))
def test_within_a_segment_each_prompt_continues_the_one_before_then_a_new_context_begins(
    turns: int, former: int, length: int
) -> None:
    settings = config(segment_turns=turns, history_turns=former)
    history: list[PastTurn] = []
    before: list[dict] = []
    for turn in range(length):
        frame = Frame(f"{turn:064x}", b"")
        messages = build_messages(settings, history, frame, None)
        frames = frames_of(settings, history, frame)
        assert [f.sha256 for f in frames] == [f"{t:064x}" for t in range(turn - turn % turns, turn + 1)]
        assert sum(isinstance(m["content"], list) for m in messages) == len(frames) <= turns
        if turn % turns:
            assert messages[: len(before)] == before
            assert messages[len(before)] == {"role": "assistant", "content": f"answer {turn - 1}"}
        history.append(PastTurn(frame, None, f"answer {turn}"))
        before = messages


def test_the_frame_that_is_sent_is_lossless() -> None:
    env = CrafterEnv(288)
    env.reset(1)
    pixels = env.render()
    frame = Frame(frame_hash(pixels), encode_png(pixels))
    url = with_pixels(build_messages(config(), [], frame, None), [frame])[-1]["content"][0]["image_url"]["url"]
    assert frame_hash(decode_png(base64.b64decode(url.partition(",")[2]))) == frame.sha256


def test_the_prompt_states_the_installed_rules() -> None:
    prompt = system_prompt(config(max_actions=4), CRAFTER)
    table = next(place for place in rules().place if place.name == "table")
    assert f"place_table costs {table.uses['wood']} wood" in prompt
    assert "1 to 4 actions" in prompt
    assert all(f"{action}" in prompt for action in ACTIONS if action != "noop")


def test_the_state_as_text_tells_what_the_image_shows() -> None:
    env = CrafterEnv(64)
    env.reset(3)
    text = state_text(env.local_view(), ["collect_wood"])
    assert "health 9" in text
    assert "Unlocked: collect_wood" in text
    assert "tree at (" in text
