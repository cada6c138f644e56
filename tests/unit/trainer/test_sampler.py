"""Sampling survives what episodes and task apps do."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

pytest.importorskip("torch")

from tests.unit.trainer.test_batch import EXPECT, decision, response
from visionrl.job import JobSpec, PolicyModel, PolicySettings, Rollout, Training
from visionrl.rollout import RolloutRequest, RolloutResponse
from visionrl_trainer import taskapp as taskapp_module
from visionrl_trainer.sampler import Sampler, SamplingFailed
from visionrl_trainer.taskapp import RolloutRefused, TaskApp

SPEC = JobSpec(
    model=PolicyModel(base="tiny"),
    training=Training(iterations=1, group_size=4),
    rollout=Rollout(max_concurrent=3, policy_config=PolicySettings(top_p=0.5)),
)


class StandIn(TaskApp):
    """Answers in place of the HTTP call; counts what is in flight."""

    def __init__(self, aborts: set[str]) -> None:
        self.aborts, self.requests = aborts, list[RolloutRequest]()
        self.in_flight = self.most = 0

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        self.requests.append(request)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        played = response([decision()])
        if any(mark in request.run_id for mark in self.aborts):
            return played.model_copy(update={"aborted": True, "abort_reason": "turn_timeout"})
        return played


def sampler(taskapp: TaskApp) -> Sampler:
    return Sampler(taskapp, SPEC, "crafter", "http://inference", EXPECT)


async def test_a_group_is_one_start_state_played_as_often_as_asked() -> None:
    taskapp = StandIn(set())
    batch = await sampler(taskapp).collect(0, "crafter-v000000", [11, 12])
    assert Counter(request.env.seed for request in taskapp.requests) == {11: 4, 12: 4}
    assert [len(group.episodes) for group in batch.groups] == [4, 4]
    assert taskapp.most <= 3


async def test_training_samples_the_whole_distribution_without_banned_tokens() -> None:
    taskapp = StandIn(set())
    await sampler(taskapp).collect(0, "crafter-v000000", [11])
    config = taskapp.requests[0].policy.config
    assert config.top_p == 1.0
    assert config.tool_choice == "auto"
    assert set(config.banned_token_ids) == EXPECT.banned_ids


async def test_an_aborted_episode_is_played_again_under_another_name() -> None:
    taskapp = StandIn({"e1/r0"})
    batch = await sampler(taskapp).collect(0, "crafter-v000000", [11])
    assert batch.aborted == 1
    assert len(batch.groups[0].episodes) == 4
    assert len({request.run_id for request in taskapp.requests}) == 5


async def test_a_group_goes_on_without_an_episode_that_keeps_failing() -> None:
    batch = await sampler(StandIn({"g0/e1"})).collect(0, "crafter-v000000", [11, 12])
    assert [len(group.episodes) for group in batch.groups] == [3, 4]


async def test_nothing_to_train_on_is_an_error_not_an_empty_step() -> None:
    with pytest.raises(SamplingFailed, match="no group kept two episodes"):
        await sampler(StandIn({"/g"})).collect(0, "crafter-v000000", [11])


def http_taskapp(answers: list[httpx.Response | Exception]) -> TaskApp:
    def answer(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    app = TaskApp("http://taskapp", "key", 4)
    app._client = httpx.AsyncClient(base_url="http://taskapp", transport=httpx.MockTransport(answer))
    return app


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskapp_module, "FIRST_DELAY", 0.0)


REQUEST = RolloutRequest(run_id="a", mode="rl")


async def test_a_call_that_fails_on_the_way_is_made_again() -> None:
    good = httpx.Response(200, content=response([decision()]).model_dump_json())
    app = http_taskapp([httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(424), good])
    assert (await app.rollout(REQUEST, patience=60)).run_id == "r"


async def test_a_refusal_is_final_and_says_why() -> None:
    app = http_taskapp([httpx.Response(422, text="env.seed: must not be negative")])
    with pytest.raises(RolloutRefused, match=r"env\.seed"):
        await app.rollout(REQUEST, patience=60)


async def test_patience_ends() -> None:
    app = http_taskapp([httpx.ConnectError("refused")] * 3)
    with pytest.raises(ConnectionError, match="did not play a"):
        await app.rollout(REQUEST, patience=-1)
