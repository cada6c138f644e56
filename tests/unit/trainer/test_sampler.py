"""Sampling survives what episodes and task apps do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

pytest.importorskip("torch")

from tests.unit.trainer.test_batch import EXPECT, decision, response
from visionrl.job import JobSpec, PolicyModel, PolicySettings, Rollout, Training
from visionrl.rollout import RewardSplit, RolloutRequest, RolloutResponse
from visionrl_trainer.rollout import client as taskapp_module
from visionrl_trainer.rollout.client import RolloutRefused, TaskApp
from visionrl_trainer.rollout.sampler import Sampler, SamplingFailed, training_seeds


def spec(**training: Any) -> JobSpec:
    return JobSpec(
        model=PolicyModel(base="tiny"),
        training=Training(iterations=1, group_size=4, groups_per_iteration=2, **training),
        rollout=Rollout(max_concurrent=3, policy_config=PolicySettings(top_p=0.5)),
    )


class StandIn(TaskApp):
    """Answers in place of the HTTP call; counts what is in flight."""

    def __init__(self, aborts: set[str], same: str = "nothing") -> None:
        self.aborts, self.same, self.requests = aborts, same, list[RolloutRequest]()
        self.in_flight = self.most = 0

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        self.requests.append(request)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        earned = 0.0 if self.same in request.run_id else float(len(self.requests))
        played = response([decision(reward=RewardSplit(event=earned))])
        if any(mark in request.run_id for mark in self.aborts):
            return played.model_copy(update={"aborted": True, "abort_reason": "turn_timeout"})
        return played


def sampler(taskapp: TaskApp, **training: int) -> Sampler:
    return Sampler(taskapp, spec(**training), "crafter", "http://inference", EXPECT)


async def test_a_group_is_one_start_state_played_as_often_as_asked() -> None:
    taskapp = StandIn(set())
    batch = await sampler(taskapp).collect(0, "crafter-v000000")
    assert Counter(request.env.seed for request in taskapp.requests) == dict.fromkeys(training_seeds(0, 0, 2), 4)
    assert [len(group.episodes) for group in batch.groups] == [4, 4]
    assert taskapp.most <= 3


async def test_training_samples_the_whole_distribution_without_banned_tokens() -> None:
    taskapp = StandIn(set())
    await sampler(taskapp).collect(0, "crafter-v000000")
    config = taskapp.requests[0].policy.config
    assert config.top_p == 1.0
    assert config.tool_choice == "auto"
    assert set(config.banned_token_ids) == EXPECT.banned_ids


async def test_an_aborted_episode_is_played_again_under_another_name() -> None:
    taskapp = StandIn({"g0/e1/r0"})
    batch = await sampler(taskapp).collect(0, "crafter-v000000")
    assert batch.aborted == 1
    assert len(batch.groups[0].episodes) == 4
    assert len({request.run_id for request in taskapp.requests}) == 9


async def test_a_group_goes_on_without_an_episode_that_keeps_failing() -> None:
    batch = await sampler(StandIn({"g0/e1"})).collect(0, "crafter-v000000")
    assert [len(group.episodes) for group in batch.groups] == [3, 4]


async def test_nothing_to_train_on_is_an_error_not_an_empty_step() -> None:
    with pytest.raises(SamplingFailed, match="no group kept two episodes"):
        await sampler(StandIn({"/g"})).collect(0, "crafter-v000000")


async def test_groups_that_teach_nothing_are_replaced_as_often_as_allowed() -> None:
    taskapp = StandIn(set(), same="t0/g1")
    batch = await sampler(taskapp, max_resampling=2).collect(0, "crafter-v000000")
    assert batch.resampled == 1
    assert all(group.has_variance for group in batch.groups)
    assert len(batch.groups) == 2
    assert len(taskapp.requests) == 12


async def test_without_resampling_groups_that_teach_nothing_stay() -> None:
    batch = await sampler(StandIn(set(), same="g1")).collect(0, "crafter-v000000")
    assert [group.has_variance for group in batch.groups] == [True, False]


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
