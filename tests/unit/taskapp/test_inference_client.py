"""The client of inference servers against a real socket: keys, retries, and limits of size and time."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.ports import free_port
from visionrl_taskapp.policies import inference_client
from visionrl_taskapp.policies.completions import Completion, InferenceError, completion_url
from visionrl_taskapp.policies.inference_client import InferenceClient, UnreachableError

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request, given its head; may write anything, or nothing and wait."""

COMPLETION = {
    "model": "m",
    "prompt_token_ids": [1, 2],
    "choices": [
        {
            "message": {"role": "assistant", "content": "x"},
            "finish_reason": "stop",
            "token_ids": [4, 5],
            "logprobs": {"content": [{"logprob": -1}, {"logprob": -0.25}]},
        }
    ],
}


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


GOOD = http(200, json.dumps(COMPLETION).encode())


def writes(*responses: bytes) -> Respond:
    """Sends these bytes, one item per request, the last one for all further requests; closes after each."""
    queue = list(responses)

    async def respond(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(queue.pop(0) if len(queue) > 1 else queue[0])
        await writer.drain()
        writer.close()

    return respond


@contextlib.asynccontextmanager
async def server(respond: Respond) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                await reader.readexactly(length)
                await respond(head, writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


async def complete(respond: Respond, seconds: float = 60.0, patience: float = 0.0) -> Completion:
    async with server(respond) as url:
        client = InferenceClient(url, "job-key", "other-key")
        now = asyncio.get_running_loop().time()
        try:
            return await client.complete(completion_url(url), {}, True, now + seconds, now + patience)
        finally:
            await client.close()


async def hosted(respond: Respond, seconds: float = 60.0, key: str | None = "mine") -> Completion:
    """A completion of a server that is not the job's."""
    async with server(respond) as url:
        client = InferenceClient("http://job:8000", "job-key", key)
        now = asyncio.get_running_loop().time()
        try:
            return await client.complete(completion_url(url), {}, True, now + seconds, now)
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://inference:8000/v1", "job-key"),
        ("http://INFERENCE:8000", "job-key"),
        ("http://inference:8001", "other-key"),
        ("https://inference:8000", "other-key"),
        ("http://inference", "other-key"),
        ("http://inference.evil.example:8000", "other-key"),
        ("http://inference:8000@evil.example", None),
    ],
)
async def test_the_jobs_key_is_for_the_jobs_server_and_no_lookalike(url: str, key: str | None) -> None:
    client = InferenceClient("http://inference:8000", "job-key", "other-key")
    if key is None:
        with pytest.raises(ValueError, match="user name"):
            completion_url(url)
    else:
        assert client.key_for(completion_url(url)) == key
    await client.close()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.example", "other-key"),
        ("https://api.example:443/v1", "other-key"),
        ("https://api.example:444", None),
        ("http://api.example", None),
        ("https://api.example.evil.example", None),
        ("http://inference:8000", "job-key"),
    ],
)
async def test_a_policy_key_that_is_for_one_server_goes_to_no_other(url: str, key: str | None) -> None:
    client = InferenceClient("http://inference:8000", "job-key", "other-key", "https://api.example/v1")
    assert client.key_for(completion_url(url)) == key
    await client.close()


async def test_a_redirect_is_an_error_and_takes_no_key_elsewhere() -> None:
    heads = []

    async def record(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(GOOD)

    async with server(record) as elsewhere:
        with pytest.raises(InferenceError, match="answered 307"):
            await complete(writes(http(307, location=f"{elsewhere}/v1/chat/completions")))
    assert heads == []


async def test_cookies_are_not_kept() -> None:
    heads = []

    async def record(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(http(503, set_cookie="a=b") if len(heads) == 1 else GOOD)

    await complete(record)
    assert b"cookie" not in heads[1].lower()


async def test_errors_hold_no_key_and_no_control_characters() -> None:
    async def echo(head: bytes, writer: asyncio.StreamWriter) -> None:
        key = head.partition(b"uthorization: ")[2].partition(b"\r\n")[0]
        writer.write(http(401, b"bad " + key + b" other-key \x1b[31mred\r\nlines"))

    with pytest.raises(InferenceError) as caught:
        await complete(echo)
    assert "bad Bearer ***" in str(caught.value)
    assert "-key" not in str(caught.value)
    assert str(caught.value).isprintable()


async def test_a_refused_connection_is_unreachable_once_patience_is_over() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = InferenceClient(url, None, None)
    now = asyncio.get_running_loop().time()
    with pytest.raises(UnreachableError, match=rf"cannot connect to {url}/v1/chat/completions: .*127"):
        await client.complete(completion_url(url), {}, True, now + 60, now)
    with pytest.raises(UnreachableError, match="retried until the deadline"):
        await client.complete(completion_url(url), {}, True, now + 0.3, now + 60)
    await client.close()


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "\u2460\u2461.invalid", "xn--a", "no-such-host.invalid"])
async def test_a_host_that_cannot_be_found_is_an_error_of_the_request(host: str) -> None:
    client = InferenceClient(None, None, None)
    now = asyncio.get_running_loop().time()
    with pytest.raises((InferenceError, ValueError), match=r"cannot|not a URL"):
        await client.complete(completion_url(f"http://{host}"), {}, True, now + 60, now)
    await client.close()


async def test_the_environments_proxy_is_for_other_servers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []

    async def record(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(GOOD)

    async with server(record) as proxy, server(writes(GOOD)) as inside:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "direct.invalid")
        client = InferenceClient(inside, None, None)
        now = asyncio.get_running_loop().time()
        for url in (inside, "http://outside.invalid"):
            await client.complete(completion_url(url), {}, True, now + 60, now)
        with pytest.raises(UnreachableError):
            await client.complete(completion_url("http://direct.invalid"), {}, True, now + 60, now)
        await client.close()
    assert [head.split()[1] for head in heads] == [b"http://outside.invalid/v1/chat/completions"]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x00\xff\x16\x03 garbage\r\n\r\n",
        b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"a',
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n{}\r\n",
        http(503, b"loading"),
        http(429, b"busy"),
    ],
    ids=["closed", "garbage", "half", "negative-length", "bad-chunk", "503", "429"],
)
async def test_what_may_heal_is_tried_again(broken: bytes) -> None:
    assert (await complete(writes(broken, broken, GOOD))).token_ids == [4, 5]


async def test_a_connection_that_is_reset_is_tried_again() -> None:
    resets = iter([True, True])

    async def respond(_head: bytes, writer: asyncio.StreamWriter) -> None:
        if next(resets, False):
            writer.transport.abort()
        else:
            writer.write(GOOD)

    assert (await complete(respond)).token_ids == [4, 5]


def busy(retry_after: str, body: bytes = b"") -> bytes:
    return http(429, body, retry_after=retry_after)


@pytest.mark.parametrize("retry_after", ["30", "999999999999", "Wed, 21 Oct 2099 07:28:00 GMT"])
async def test_a_wait_beyond_the_deadline_is_told_at_once(retry_after: str) -> None:
    with pytest.raises(InferenceError, match=r"429: .*; its Retry-After of .* is beyond the turn's deadline"):
        await hosted(writes(busy(retry_after)), seconds=20.0)


@pytest.mark.parametrize("retry_after", ["\u00b2", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_wait_that_is_none_is_a_short_one(retry_after: str) -> None:
    head = f"HTTP/1.1 429 X\r\ncontent-length: 0\r\nretry-after: {retry_after}\r\n\r\n".encode("latin-1")
    assert (await hosted(writes(head, GOOD))).token_ids == [4, 5]


async def test_a_server_is_asked_again_after_the_time_that_it_names() -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    assert (await hosted(writes(busy("1"), GOOD))).token_ids == [4, 5]
    assert clock() - began >= 0.75


@pytest.mark.parametrize(
    ("answer", "key", "told"),
    [
        (http(401, b"who?"), None, "no key was sent: set VISIONRL_POLICY_API_KEY where the task app runs"),
        (http(401, b"who?"), "wrong", "it refuses the key of VISIONRL_POLICY_API_KEY"),
        (http(403, b"no"), "wrong", "it refuses the key of VISIONRL_POLICY_API_KEY"),
        (http(429, b'{"code": "insufficient_quota"}'), "mine", "the quota of the key in VISIONRL_POLICY_API_KEY is"),
    ],
)
async def test_what_a_key_could_mend_names_its_variable(answer: bytes, key: str | None, told: str) -> None:
    with pytest.raises(InferenceError, match=told):
        await hosted(writes(answer), key=key)


# --- limits


async def endless(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b" " * 2**16)
        await writer.drain()


async def endless_headers(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for index in range(10**6):
        writer.write(b"x-%d: %s\r\n" % (index, b"v" * 1000))
        await writer.drain()


async def endless_error(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 X\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b"wrong " * 10_000)
        await writer.drain()


async def drip(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_headers(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def test_a_body_without_end_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client, "BODY_LIMIT", 2**20)
    with pytest.raises(InferenceError, match="longer than 1048576 bytes"):
        await complete(endless)


async def test_a_body_of_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client, "BODY_LIMIT", len(GOOD.partition(b"\r\n\r\n")[2]))
    assert (await complete(writes(GOOD))).token_ids == [4, 5]


async def test_an_error_without_end_is_read_to_its_first_words() -> None:
    with pytest.raises(InferenceError, match="answered 400: wrong wrong"):
        await complete(endless_error)


async def test_a_compressed_body_is_never_decompressed() -> None:
    bomb = gzip.compress(b" " * 2**24 + json.dumps(COMPLETION).encode())
    with pytest.raises(InferenceError, match=r"compressed .'gzip'"):
        await complete(writes(http(200, bomb, content_encoding="gzip")))


async def test_headers_without_end_are_refused_and_the_server_tried_again_until_the_deadline() -> None:
    with pytest.raises(InferenceError, match=r"broke: .*until the deadline"):
        await complete(endless_headers, seconds=3)


@pytest.mark.parametrize("slow", [drip, drip_headers])
async def test_a_response_that_drips_ends_at_the_deadline(slow: Respond) -> None:
    with pytest.raises(TimeoutError):
        await complete(slow, seconds=0.5)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300) | st.builds(http, st.integers(200, 599), st.binary(max_size=100)))
@example(http(200, b"{" * 100_000))
@example(http(200, b"[" * 1000 + b"]" * 1000))
@example(http(200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'))
@example(http(200, json.dumps(COMPLETION).encode().replace(b"-0.25", b"NaN")))
@example(http(200, json.dumps(COMPLETION).encode().replace(b"-0.25", b"-1e999")))
@example(http(200, json.dumps(COMPLETION).encode().replace(b"-0.25", b"-" + b"9" * 400)))
def test_no_bytes_whatever_break_the_client(response: bytes) -> None:
    with contextlib.suppress(InferenceError, TimeoutError):
        asyncio.run(complete(writes(response), seconds=0.15))
