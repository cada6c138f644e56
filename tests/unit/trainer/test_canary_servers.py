"""Servers that restart, are away, refuse a version, or answer nothing of use while it is proven."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.canary import Rig, refused
from tests.unit.trainer.test_intake import decision, response
from visionrl.adapters import ADAPTERS_PATH, SERVER_HEADER, Version
from visionrl.rollout import RolloutResponse
from visionrl_trainer.sync import inference_client, weight_sync

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.vision


async def test_a_restarted_server_is_proven_again_and_a_proven_one_is_not(rig: Rig) -> None:
    def probes() -> int:
        return sum("probe" in model for _, model in rig.server.asked)

    await rig.push()
    await rig.push()
    assert probes() == 1
    rig.server.restart()
    await rig.push()
    assert probes() == 2
    rig.server.restart()
    rig.server.tamper = lambda weights: [tensor.zero_() for tensor in weights.values()]  # type: ignore[assignment]
    await refused(rig, "server")


def played_by(process: str, version: Version) -> RolloutResponse:
    """An episode of one decision that this server answered."""
    return response([decision(server=process, model=version.name)])


async def test_a_server_that_was_restarted_since_the_last_push_is_proven_before_its_answers_are_used(rig: Rig) -> None:
    rig.learn(0.02)
    version = await rig.push()
    asked = len(rig.server.asked)
    await rig.sync.admit(played_by(rig.server.process, version))
    assert len(rig.server.asked) == asked, "what was proven is not asked for again"
    rig.server.restart()
    rig.learn(0.02, seed=1)  # the update goes on meanwhile
    await asyncio.gather(*[rig.sync.admit(played_by(rig.server.process, version)) for _ in range(8)])
    assert sum("probe" in model for _, model in rig.server.asked) == 2
    assert rig.server.loaded.keys() >= {version.name}


async def test_no_answer_of_a_restarted_server_that_ignores_adapters_is_used(rig: Rig) -> None:
    from visionrl_trainer.sync.canary import CanaryFailed

    version = await rig.push()
    rig.server.restart()
    rig.server.tamper = lambda weights: [tensor.zero_() for tensor in weights.values()]  # type: ignore[assignment]
    with pytest.raises(CanaryFailed, match="server"):
        await rig.sync.admit(played_by(rig.server.process, version))


async def test_an_answer_of_a_server_that_is_gone_before_it_was_proven_is_refused(rig: Rig) -> None:
    from visionrl_trainer.rollout.client import AnswerRejected

    version = await rig.push()
    rig.server.restart()
    gone = rig.server.process
    rig.server.restart()
    with pytest.raises(AnswerRejected, match=gone):
        await rig.sync.admit(played_by(gone, version))


async def test_while_a_restarted_server_is_away_the_status_says_so(rig: Rig) -> None:
    version = await rig.push()
    rig.server.restart()
    phases = []

    def away() -> httpx.Response:
        phases.append(rig.publisher.report.phase)
        raise httpx.ConnectError("refused")

    rig.server.answers = [away, away]
    await rig.sync.admit(played_by(rig.server.process, version))
    assert (phases, rig.publisher.report.phase) == (["Training", "WaitingForInference"], "Training")


async def test_a_server_that_restarts_in_the_middle_is_asked_again(rig: Rig) -> None:
    await rig.push()
    for path in (ADAPTERS_PATH, "/v1/chat/completions"):
        rig.server.restarts_at = path
        await rig.push()
        assert not rig.server.restarts_at


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
async def test_a_refusal_for_good_ends_at_once_with_the_servers_reason(rig: Rig, status: int) -> None:
    from visionrl.component import ConfigurationError

    reason = {"error": {"message": "adapter is refused: q_proj is [64, 4], the base model's is [128, 64]"}}
    rig.server.answers = [httpx.Response(status, json=reason)]
    with pytest.raises(ConfigurationError, match="q_proj is"):
        await rig.push()
    assert len(rig.server.asked) == 1


async def test_a_server_that_is_away_is_waited_for(rig: Rig) -> None:
    def away() -> httpx.Response:
        raise httpx.ConnectError("refused")

    rig.server.answers = [away, away, httpx.Response(503, text="the trainer is not ready"), httpx.Response(500)]
    await rig.push()
    assert "status 500" in rig.publisher.report.message


DYING = {"error": {"message": "LoRA adapter 'job-v000001-0123456789ab' was found but could not be loaded."}}


async def test_a_server_whose_engine_just_died_is_waited_for(rig: Rig) -> None:
    rig.server.answers = [httpx.Response(400, json=DYING), httpx.Response(503, text="shutting down")]
    await rig.push()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, {"error": {"message": "no such model"}}), (400, DYING)],
    ids=["unknown", "not loaded"],
)
async def test_a_server_that_does_not_serve_the_version_is_given_up_soon(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, status: int, reason: dict[str, object]
) -> None:
    monkeypatch.setattr(weight_sync, "MISSING_SECONDS", 0.05)
    rig.server.answers = [httpx.Response(status, json=reason)] * 1000
    with pytest.raises(ConnectionError, match=f"status {status}"):
        await asyncio.wait_for(rig.push(), 60)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"[" * 100_000, headers={SERVER_HEADER: "x"}),
        httpx.Response(200, json={}, headers={SERVER_HEADER: "x"}),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, content=b" " * (inference_client.MAX_ANSWER_BYTES + 1), headers={SERVER_HEADER: "x"}),
    ],
)
async def test_an_answer_that_is_none_fails_the_check(rig: Rig, answer: httpx.Response) -> None:
    rig.server.answers = [answer, answer]
    await refused(rig, "cannot be used")


async def test_an_answer_that_never_ends_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    monkeypatch.setattr(inference_client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(weight_sync, "PATIENCE_SECONDS", 0.0)
    rig.server.answers = [lambda: httpx.Response(200, stream=Slow())] * 3
    with pytest.raises(ConnectionError, match="no complete answer"):
        await asyncio.wait_for(rig.push(), 60)
