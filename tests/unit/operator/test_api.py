"""Requests to the API server: what is retried, for how long, and how a failure reads."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.support.fake_api import answer, failure
from visionrl_core.kinds import JOB, OWNED_KINDS
from visionrl_operator.api import ATTEMPTS, Answer, Api, ApiError

SERVICE = OWNED_KINDS["Service"]
MADE = answer(200, {"metadata": {"name": "web"}})


class Script:
    """A transport that plays back: an answer, or an exception, for each request."""

    def __init__(self, *results: Answer | Exception) -> None:
        self.results, self.sent = list(results), 0

    async def send(self, method: str, path: str, content_type: str, body: Any, timeout_s: float) -> Answer:
        result = self.results[min(self.sent, len(self.results) - 1)]
        self.sent += 1
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        pass


def api(script: Script, waits: list[float] | None = None, counted: list[Any] | None = None) -> Api:
    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    return Api(script, 1.0, lambda *what: counted.append(what) if counted is not None else None, sleep)


TRANSIENT = [
    failure(429, "TooManyRequests"),
    failure(500, "InternalError"),
    failure(503, "ServiceUnavailable"),
    failure(409, "Conflict"),
    TimeoutError(),
    aiohttp.ServerDisconnectedError(),
    ConnectionResetError("reset"),
]


@pytest.mark.parametrize("problem", TRANSIENT, ids=str)
async def test_applying_goes_on_after_a_passing_problem(problem: Answer | Exception) -> None:
    script = Script(problem, problem, MADE)
    assert await api(script).apply(SERVICE, "default", "web", {}) == {"metadata": {"name": "web"}}
    assert script.sent == 3


@pytest.mark.parametrize("problem", TRANSIENT, ids=str)
async def test_applying_gives_up_and_says_what_the_server_said(problem: Answer | Exception) -> None:
    script = Script(problem)
    with pytest.raises(ApiError) as caught:
        await api(script).apply(SERVICE, "default", "web", {})
    assert script.sent == ATTEMPTS
    assert caught.value.status == (problem.status if isinstance(problem, Answer) else 0)


@pytest.mark.parametrize("status", [400, 403, 404, 410, 422])
async def test_a_refusal_is_not_repeated(status: int) -> None:
    script = Script(failure(status, "Refused", "exceeded quota: pods"))
    with pytest.raises(ApiError, match="exceeded quota: pods") as caught:
        await api(script).apply(SERVICE, "default", "web", {})
    assert (script.sent, caught.value.status, caught.value.reason) == (1, status, "Refused")


async def test_the_server_says_when_to_come_again() -> None:
    waits: list[float] = []
    script = Script(failure(429, Retry_After="7"), failure(429, Retry_After="soon"), failure(503), MADE)
    await api(script, waits).apply(SERVICE, "default", "web", {})
    assert waits[0] == 7
    assert all(0 < wait < 2 for wait in waits[1:])


async def test_waits_grow() -> None:
    waits: list[float] = []
    with pytest.raises(ApiError):
        await api(Script(failure(500)), waits).get(SERVICE, "default", "web")
    assert len(waits) == ATTEMPTS - 1
    assert waits == sorted(waits)


async def test_a_proxys_page_is_quoted_in_part() -> None:
    page = Answer(502, {}, b"<html>" + b"x" * 10_000)
    with pytest.raises(ApiError, match="<html>xxx") as caught:
        await api(Script(page)).get(SERVICE, "default", "web")
    assert len(str(caught.value)) < 300


async def test_absent_gone_and_present_are_answers_not_errors() -> None:
    assert await api(Script(failure(404))).get(SERVICE, "default", "web") is None
    assert await api(Script(failure(404))).delete(SERVICE, "default", "web", "uid", "Foreground") is None
    assert await api(Script(failure(409))).delete(SERVICE, "default", "web", "old uid", "Foreground") is None
    assert await api(Script(failure(409, "AlreadyExists"))).create(SERVICE, "default", {}) is None
    assert await api(Script(failure(409, "Conflict"))).patch_status(JOB, "default", "demo", {}) is None


async def test_a_conflict_that_is_no_existing_object_is_an_error() -> None:
    with pytest.raises(ApiError, match="quota"):
        await api(Script(failure(409, "Conflict", "resource quota changed"))).create(SERVICE, "default", {})


async def test_every_answered_request_is_counted() -> None:
    counted: list[Any] = []
    await api(Script(failure(500), TimeoutError(), MADE), counted=counted).apply(SERVICE, "default", "web", {})
    assert counted == [("patch", "Service", 500), ("patch", "Service", 200)]


def test_paths() -> None:
    assert SERVICE.path("a", "b") == "/api/v1/namespaces/a/services/b"
    assert OWNED_KINDS["Job"].path(None) == "/apis/batch/v1/jobs"
    assert JOB.path("a", "b", "status") == "/apis/visionrl.dev/v1alpha1/namespaces/a/visionrljobs/b/status"
