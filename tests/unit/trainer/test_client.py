"""The task app's client: retries, a size limit, a total deadline, and reasons that a user understands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

pytest.importorskip("torch")

from tests.unit.trainer.test_intake import decision, response
from visionrl.rollout import RolloutRequest, RolloutResponse, Safety
from visionrl_trainer.rollout import client as taskapp_module
from visionrl_trainer.rollout.client import AnswerRejected, RolloutRefused, TaskApp, answer_limit

GOOD = response([decision()]).model_dump_json()


def answer(status: int, text: str = "", **headers: str) -> httpx.Response:
    """An answer that is read as it arrives."""
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(text.encode()))


def http_taskapp(answers: list[httpx.Response | Exception]) -> TaskApp:
    def respond(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    app = TaskApp("http://taskapp", "key", 4)
    app._client = httpx.AsyncClient(base_url="http://taskapp", transport=httpx.MockTransport(respond))
    return app


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskapp_module, "FIRST_DELAY", 0.0)


REQUEST = RolloutRequest(run_id="a", mode="rl")


async def test_a_call_that_fails_on_the_way_is_made_again() -> None:
    good = answer(200, GOOD)
    app = http_taskapp([httpx.ConnectError("refused"), answer(503), answer(424), good])
    assert (await app.rollout(REQUEST, patience=60)).run_id == "r"


async def test_a_refusal_is_final_and_says_why() -> None:
    app = http_taskapp([answer(422, "env.seed: must not be negative")])
    with pytest.raises(RolloutRefused, match=r"env\.seed"):
        await app.rollout(REQUEST, patience=60)


async def test_patience_ends() -> None:
    app = http_taskapp([httpx.ConnectError("refused")] * 3)
    with pytest.raises(ConnectionError, match="did not play a"):
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
    with pytest.raises(AnswerRejected, match=message) as refused:
        await http_taskapp([answer(200, text)]).rollout(REQUEST, patience=60)
    assert "pydantic" not in str(refused.value)


async def test_an_answer_larger_than_any_honest_one_is_refused_while_it_is_read() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield bytes(1 << 20)

    with pytest.raises(AnswerRejected, match="larger than"):
        await http_taskapp([httpx.Response(200, content=endless())]).rollout(REQUEST, patience=60)
    assert sent <= answer_limit(REQUEST) + (2 << 20)


async def test_a_compressed_answer_is_refused() -> None:
    """A few kilobytes of it can be gigabytes."""
    bomb = answer(200, "\x1f\x8b", **{"Content-Encoding": "gzip"})
    with pytest.raises(AnswerRejected, match="compressed"):
        await http_taskapp([bomb]).rollout(REQUEST, patience=60)


async def test_an_answer_that_drips_has_a_deadline_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskapp_module, "GRACE_SECONDS", 0.0)

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    impatient = REQUEST.model_copy(update={"safety": Safety(max_time_s=0.2)})
    app = http_taskapp([httpx.Response(200, content=drip()), answer(200, GOOD)])
    assert (await app.rollout(impatient, patience=60)).run_id == "r"


async def test_a_run_id_that_is_taken_is_no_end_of_the_run() -> None:
    with pytest.raises(AnswerRejected, match="knows a as another request"):
        await http_taskapp([answer(409, "differs")]).rollout(REQUEST, patience=60)


async def test_no_answer_is_returned_before_the_servers_that_gave_it_are_proven() -> None:
    async def refuse(response: RolloutResponse) -> None:
        raise AnswerRejected(f"not proven: {response.run_id}")

    app = http_taskapp([answer(200, GOOD)])
    app.proof = refuse
    with pytest.raises(AnswerRejected, match="not proven: r"):
        await app.rollout(REQUEST, patience=60)


async def test_a_refused_answer_is_forgotten_by_the_task_app_and_nothing_depends_on_it() -> None:
    asked: list[tuple[str, bytes]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.content))
        if len(asked) == 2:
            raise httpx.ConnectError("refused")
        return httpx.Response(200 if len(asked) == 1 else 500, json={"ok": True})

    app = http_taskapp([])
    app._client = httpx.AsyncClient(base_url="http://taskapp", transport=httpx.MockTransport(respond))
    for _ in range(3):
        await app.forget("crafter/i0/r0")
    assert asked == [("/done", b'{"run_id":"crafter/i0/r0"}')] * 3
