"""The URL of completions, the request's body, and which responses are refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.rollout import PolicyConfig
from visionrl_taskapp.policies.completions import (
    InferenceError,
    completion_body,
    completion_url,
    correlation_id,
    read_completion,
)

CONFIG = PolicyConfig(model="job-v000001", inference_url="http://inference:8000", top_p=0.9)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://a:8000", "http://a:8000/v1/chat/completions"),
        ("http://a:8000/", "http://a:8000/v1/chat/completions"),
        ("https://a/v1", "https://a/v1/chat/completions"),
        ("https://a/v1/?cid=x", "https://a/v1/chat/completions?cid=x"),
        ("https://a/gateway/v1", "https://a/gateway/v1/chat/completions"),
        ("https://a/v1/chat/completions", "https://a/v1/chat/completions"),
    ],
)
def test_urls_with_and_without_v1(base: str, url: str) -> None:
    assert str(completion_url(base)) == url


@pytest.mark.parametrize("base", ["", "a:8000", "//a", "ftp://a", "http://", "http://user:password@a", "http://[::1"])
def test_what_is_no_usable_url_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        completion_url(base)


@given(st.text() | st.text().map("http://{}".format))
def test_no_text_whatever_breaks_the_url(text: str) -> None:
    try:
        completion_url(text)
    except ValueError:
        return
    correlation_id(text)


def test_the_correlation_id_is_read() -> None:
    assert correlation_id("http://a/v1?cid=trace_1") == "trace_1"
    assert correlation_id("http://a/v1") is None


def test_with_logprobs_the_body_samples_the_whole_distribution() -> None:
    body = completion_body(CONFIG.model_copy(update={"banned_token_ids": [3]}), [], [], logprobs=True)
    assert (body["top_p"], body["top_k"], body["tool_choice"]) == (1.0, -1, "auto")
    assert (body["logprobs"], body["return_token_ids"], body["logit_bias"]) == (True, True, {"3": -100})


def test_without_logprobs_nothing_is_sent_that_other_servers_refuse() -> None:
    body = completion_body(CONFIG, [], [], logprobs=False)
    assert body["top_p"] == 0.9
    assert not {"top_k", "return_token_ids", "logprobs", "logit_bias"} & set(body)


@pytest.mark.parametrize("model", ["gpt-5-nano", "gpt-5", "openai/gpt-5.1", "o3", "o4-mini"])
def test_hosted_reasoning_models_get_the_parameters_that_they_take(model: str) -> None:
    config = PolicyConfig(model=model, max_tokens=300)
    body = completion_body(config, [], [], logprobs=False)
    assert body["max_completion_tokens"] == 300
    assert not {"max_tokens", "temperature", "top_p"} & set(body)
    assert completion_body(config.model_copy(update={"temperature": 0.5}), [], [], False)["temperature"] == 0.5


@pytest.mark.parametrize("model", ["job-v000001", "Qwen/Qwen3-VL-4B-Instruct", "gpt-4o-mini", "o-v1", "gpt-50"])
def test_other_models_always_get_temperature_and_nucleus(model: str) -> None:
    body = completion_body(PolicyConfig(model=model), [], [], logprobs=False)
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (512, 1.0, 1.0)


def completion(**changes: Any) -> dict[str, Any]:
    choice = {
        "message": {"role": "assistant", "content": "x"},
        "finish_reason": "stop",
        "token_ids": [4, 5],
        "logprobs": {"content": [{"logprob": -1}, {"logprob": -0.25}]},
    }
    return {"model": "m", "prompt_token_ids": [1, 2], "choices": [choice | changes.pop("choice", {})]} | changes


def test_a_whole_answer_is_read() -> None:
    answer = read_completion(completion(), logprobs=True)
    assert (answer.prompt_token_ids, answer.token_ids, answer.logprobs) == ([1, 2], [4, 5], [-1.0, -0.25])
    assert (answer.model, answer.finish_reason) == ("m", "stop")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no chat completion"),
        ([], "no chat completion"),
        ({"choices": [{"message": "x"}]}, "no chat completion"),
        (completion(prompt_token_ids=None), "prompt_token_ids"),
        (completion(prompt_token_ids=[True]), "prompt_token_ids"),
        (completion(choice={"token_ids": None}), "token_ids"),
        (completion(choice={"token_ids": []}), "token_ids"),
        (completion(choice={"logprobs": None}), "no logprobs"),
        (completion(choice={"logprobs": {"content": [{"logprob": "x"}]}}), "no logprobs"),
        (completion(choice={"logprobs": {"content": [{"logprob": -1}]}}), "2 token ids but 1 logprobs"),
        (completion(choice={"logprobs": {"content": [{"logprob": "-1"}] * 2}}), "no logprobs"),
        (completion(choice={"logprobs": {"content": [{"logprob": True}] * 2}}), "no logprobs"),
        (completion(choice={"logprobs": {"content": [{"logprob": float("nan")}] * 2}}), "not finite"),
        (completion(choice={"logprobs": {"content": [{"logprob": -math.inf}] * 2}}), "not finite"),
        (completion(choice={"logprobs": {"content": [{"logprob": -1.7e308}] * 2}}), "-1.7e\\+308"),
        (completion(choice={"logprobs": {"content": [{"logprob": 0.5}] * 2}}), "logprob of 0.5"),
        (completion(choice={"token_ids": [4, 2**31]}), "token_ids"),
        (completion(choice={"token_ids": [4, -1]}), "token_ids"),
        (completion(choice={"token_ids": [4, 5.0]}), "token_ids"),
        (completion(model=None), "which model"),
        (completion(model="m" * 1000), "which model"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_refused(data: Any, words: str) -> None:
    with pytest.raises(InferenceError, match=words):
        read_completion(data, logprobs=True)


@pytest.mark.parametrize("count", [-1, 2**63, 2**70, 1e25, math.nan, True, "3", None, {"a": 1}, [1]])
def test_a_usage_number_that_no_database_takes_is_left_out(count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2**99}}
    assert read_completion(completion(usage=usage), logprobs=False).usage == {"completion_tokens": 7}


def test_usage_of_another_kind_is_none() -> None:
    for usage in (None, [1], "x", 5):
        assert read_completion(completion(usage=usage), logprobs=False).usage == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CHOICE = st.fixed_dictionaries(
    {"message": JSON | st.just({"content": "x"})},
    optional={
        "finish_reason": JSON,
        "token_ids": JSON | st.lists(st.integers(0, 9), min_size=1),
        "logprobs": JSON | st.fixed_dictionaries({"content": st.lists(st.fixed_dictionaries({"logprob": JSON}))}),
    },
)
RESPONSE = JSON | st.fixed_dictionaries(
    {"choices": JSON | st.lists(JSON | CHOICE, min_size=1, max_size=2)},
    optional={"model": JSON, "usage": JSON, "prompt_token_ids": JSON | st.lists(st.integers(0, 9), min_size=1)},
)


@given(RESPONSE, st.booleans())
def test_no_response_whatever_breaks_the_reader_and_what_it_takes_can_be_trained_on(data: Any, logprobs: bool) -> None:
    try:
        read = read_completion(data, logprobs)
    except InferenceError:
        return
    json.dumps([read.model, read.finish_reason, read.usage], allow_nan=False)
    if logprobs:
        assert read.model
        assert read.prompt_token_ids
        assert read.token_ids
        assert read.logprobs is not None
        assert len(read.logprobs) == len(read.token_ids)
        assert all(-1e4 <= value <= 1e-3 for value in read.logprobs)
