"""The task app's client: retries, a size limit, a total deadline, and reasons that a user understands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

pytest.importorskip("torch")

from tests.support.ports import free_port
from tests.support.until import until
from tests.unit.trainer.test_intake import decision, response
from visionrl.rollout import RolloutRequest, RolloutResponse, Safety
from visionrl_trainer.rollout import client as taskapp_module
from visionrl_trainer.rollout.client import AnswerRejected, RolloutRefused, TaskApp, answer_limit

GOOD = response([decision()]).model_dump_json()
BUFFERED = 16 << 20
"""More than the kernel and both sides hold of an answer that nobody reads."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(status: int, text: str = "", **headers: str) -> Answer:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=text.encode(), headers=headers)

    return respond


async def broken(request: web.Request) -> web.StreamResponse:
    """The connection ends without an answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def streamed(chunks: Callable[[], AsyncIterator[bytes]]) -> Answer:
    async def respond(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        async for chunk in chunks():
            await stream.write(chunk)
        return stream

    return respond


@contextlib.asynccontextmanager
async def http_taskapp(*answers: Answer, asked: list[tuple[str, bytes]] | None = None) -> AsyncIterator[TaskApp]:
    """A client of a server that gives these answers, one after the other."""
    queue = list(answers)

    async def respond(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer key"
        if asked is not None:
            asked.append((request.path, await request.read()))
        return await queue.pop(0)(request)

    application = web.Application()
    application.router.add_post("/{path}", respond)
    async with TestServer(application) as server, TaskApp(str(server.make_url("")), "key", 4) as app:
        yield app


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskapp_module, "FIRST_DELAY", 0.0)


REQUEST = RolloutRequest(run_id="a", mode="rl")


async def test_a_call_that_fails_on_the_way_is_made_again() -> None:
    async with http_taskapp(broken, answer(503), answer(424), answer(200, GOOD)) as app:
        assert (await app.rollout(REQUEST, patience=60)).run_id == "r"


async def test_a_refusal_is_final_and_says_why() -> None:
    async with http_taskapp(answer(422, "env.seed: must not be negative")) as app:
        with pytest.raises(RolloutRefused, match=r"env\.seed"):
            await app.rollout(REQUEST, patience=60)


async def test_patience_ends() -> None:
    async with TaskApp(f"http://127.0.0.1:{free_port()}", "key", 4) as app:
        with pytest.raises(ConnectionError, match="did not play a: ClientConnectorError"):
            await app.rollout(REQUEST, patience=-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "cannot be read: Invalid JSON"),
        ("", "cannot be read"),
        ('{"run_id": 5}', "run_id: Input should be a valid string"),
        (
            GOOD.replace(
                '"tool_calls":[]', '"tool_calls":[{"tool_name":"t","arguments":{"a":' + "[" * 250 + "]" * 250 + "}}]"
            ),
            "recursion limit",
        ),
    ],
)
async def test_an_answer_that_cannot_be_read_is_refused_by_its_field(text: str, message: str) -> None:
    async with http_taskapp(answer(200, text)) as app:
        with pytest.raises(AnswerRejected, match=message) as refused:
            await app.rollout(REQUEST, patience=60)
    assert "pydantic" not in str(refused.value)


async def test_an_answer_larger_than_any_honest_one_is_refused_while_it_is_read() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield bytes(1 << 20)

    async with http_taskapp(streamed(endless)) as app:
        with pytest.raises(AnswerRejected, match="larger than"):
            await app.rollout(REQUEST, patience=60)
    assert sent <= answer_limit(REQUEST) + BUFFERED


async def test_a_compressed_answer_is_refused() -> None:
    """A few kilobytes of it can be gigabytes."""
    bomb = answer(200, "\x1f\x8b", **{"Content-Encoding": "gzip"})
    async with http_taskapp(bomb) as app:
        with pytest.raises(AnswerRejected, match="compressed"):
            await app.rollout(REQUEST, patience=60)


async def test_an_answer_that_drips_has_a_deadline_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskapp_module, "GRACE_SECONDS", 0.0)

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    impatient = REQUEST.model_copy(update={"safety": Safety(max_time_s=0.2)})
    async with http_taskapp(streamed(drip), answer(200, GOOD)) as app:
        assert (await app.rollout(impatient, patience=60)).run_id == "r"


async def test_a_run_id_that_is_taken_is_no_end_of_the_run() -> None:
    async with http_taskapp(answer(409, "differs")) as app:
        with pytest.raises(AnswerRejected, match="knows a as another request"):
            await app.rollout(REQUEST, patience=60)


async def test_no_answer_is_returned_before_the_servers_that_gave_it_are_proven() -> None:
    async def refuse(response: RolloutResponse) -> None:
        raise AnswerRejected(f"not proven: {response.run_id}")

    async with http_taskapp(answer(200, GOOD)) as app:
        app.proof = refuse
        with pytest.raises(AnswerRejected, match="not proven: r"):
            await app.rollout(REQUEST, patience=60)


async def test_a_refused_answer_is_forgotten_by_the_task_app_and_nothing_depends_on_it() -> None:
    asked: list[tuple[str, bytes]] = []
    async with http_taskapp(answer(200, "{}"), broken, answer(500, "{}"), asked=asked) as app:
        for _ in range(3):
            await app.forget("crafter/i0/r0")
    assert [(path, json.loads(body)) for path, body in asked] == [("/done", {"run_id": "crafter/i0/r0"})] * 3


class Clock:
    """In place of ``time``; the test sets what it shows."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def held(events: list[asyncio.Event]) -> list[Answer]:
    """Answers that come when the test says so."""

    def after(event: asyncio.Event) -> Answer:
        async def respond(request: web.Request) -> web.StreamResponse:
            await event.wait()
            return await answer(200, GOOD)(request)

        return respond

    return [after(event) for event in events]


async def test_episodes_beyond_the_limit_wait_in_order_and_their_time_begins_with_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events, asked, begun = [asyncio.Event() for _ in range(6)], list[tuple[str, bytes]](), list[float]()
    timeout = asyncio.timeout

    def noted(seconds: float | None) -> asyncio.Timeout:
        begun.extend([] if seconds is None else [seconds - taskapp_module.GRACE_SECONDS])
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", noted)

    def request(n: int) -> RolloutRequest:
        return RolloutRequest(run_id=f"e{n}", mode="rl", safety=Safety(max_time_s=1000.0 + n))

    async with http_taskapp(*held(events), asked=asked) as app:

        def names() -> list[str]:
            return [json.loads(body)["run_id"] for _, body in asked]

        playing = [asyncio.create_task(app.rollout(request(n), 900.0)) for n in range(6)]
        await until(lambda: len(asked) == 4)
        assert set(names()) == {"e0", "e1", "e2", "e3"}
        assert not {1004.0, 1005.0} & set(begun)
        for place in (4, 5):
            events[place - 4].set()
            await until(lambda place=place: len(asked) == place + 1)  # type: ignore[misc]
            assert names()[place] == f"e{place}"
            assert 1000.0 + place in begun
        for event in events:
            event.set()
        await asyncio.gather(*playing)


async def test_it_is_busy_while_any_episode_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, events, asked = Clock(), [asyncio.Event() for _ in range(3)], list[tuple[str, bytes]]()
    monkeypatch.setattr(taskapp_module, "time", clock)
    async with http_taskapp(*held(events), asked=asked) as app:
        first = asyncio.create_task(app.rollout(REQUEST, 900.0))
        await until(lambda: len(asked) == 1)
        clock.now = 2.0
        assert app.busy_seconds == 2.0
        second = asyncio.create_task(app.rollout(REQUEST, 900.0))
        await until(lambda: len(asked) == 2)
        events[0].set()
        await first
        clock.now = 5.0
        events[1].set()
        await second
        clock.now = 9.0
        assert app.busy_seconds == 5.0
        third = asyncio.create_task(app.rollout(REQUEST, 900.0))
        await until(lambda: len(asked) == 3)
        clock.now = 10.0
        third.cancel()
        await asyncio.gather(third, return_exceptions=True)
        clock.now = 12.0
        assert app.busy_seconds == 6.0
