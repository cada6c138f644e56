"""The URL of completions, the request's body, and which responses are refused."""

import asyncio
from collections.abc import Callable
from typing import Any, Never

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.rollout import PolicyConfig
from visionrl_taskapp.policies.inference_client import (
    Completion,
    InferenceClient,
    InferenceError,
    UnreachableError,
    completion_body,
    completion_url,
    correlation_id,
    read_completion,
)

CONFIG = PolicyConfig(model="job-v000001-0123456789ab", inference_url="http://inference:8000", top_p=0.9)


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


def test_no_key_of_the_job_leaves_for_a_lookalike_server() -> None:
    seen = {}

    async def ask(url: str) -> None:
        client = InferenceClient("http://inference:8000", "job-key", None)

        async def record(request: httpx.Request) -> httpx.Response:
            seen[url] = request.headers.get("authorization")
            return httpx.Response(400)

        for inner in (client._inside, client._outside):
            await inner.aclose()
        client._inside = client._outside = httpx.AsyncClient(transport=httpx.MockTransport(record))
        with pytest.raises(InferenceError):
            await client.complete(completion_url(url), {}, False, asyncio.get_running_loop().time() + 5, 0)

    for url in (
        "http://inference:8000/v1",
        "http://INFERENCE:8000",
        "http://inference:8001",
        "https://inference:8000",
        "http://inference",
        "http://inference.evil.example:8000",
    ):
        asyncio.run(ask(url))
    assert [url for url, header in seen.items() if header] == ["http://inference:8000/v1", "http://INFERENCE:8000"]


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
        (completion(choice={"logprobs": {"content": [{"logprob": float("nan")}] * 2}}), "not finite"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_refused(data: Any, words: str) -> None:
    with pytest.raises(InferenceError, match=words):
        read_completion(data, logprobs=True)


async def complete(
    respond: Callable[[httpx.Request], httpx.Response], key: str = "job-key", seconds: float = 1.0
) -> Completion:
    client = InferenceClient("http://inference:8000", key, "other-key")
    await client.close()
    client._inside = client._outside = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    now = asyncio.get_running_loop().time()
    return await client.complete(completion_url("http://inference:8000"), {}, True, now + seconds, now)


async def test_errors_hold_no_key() -> None:
    with pytest.raises(InferenceError) as caught:
        await complete(lambda request: httpx.Response(401, text=f"bad {request.headers['authorization']} other-key"))
    assert "bad Bearer ***" in str(caught.value)
    assert "-key" not in str(caught.value)


async def test_a_refused_connection_is_unreachable_once_patience_is_over() -> None:
    def refuse(_request: httpx.Request) -> Never:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError, match=r"http://inference:8000/v1/chat/completions: refused"):
        await complete(refuse)


async def test_a_connection_that_breaks_is_tried_again() -> None:
    broken = iter([httpx.ReadError("reset"), httpx.RemoteProtocolError("closed")])

    def respond(_request: httpx.Request) -> httpx.Response:
        if error := next(broken, None):
            raise error
        return httpx.Response(200, json=completion())

    assert (await complete(respond, seconds=30)).token_ids == [4, 5]


async def test_retry_after_is_respected_up_to_the_deadline() -> None:
    calls = []

    def respond(_request: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(429, headers={"retry-after": "30"})

    with pytest.raises(InferenceError, match="429"):
        await complete(respond, seconds=0.2)
    assert len(calls) == 1
