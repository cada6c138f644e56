"""Sampling survives what episodes and task apps do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.unit.trainer.test_intake import EXPECT, decision, response
from visionrl.job import JobSpec, PolicyModel, PolicySettings, Rollout, Training
from visionrl.rollout import RewardSplit, RolloutRequest, RolloutResponse
from visionrl_trainer.rollout.batch import Group
from visionrl_trainer.rollout.client import AnswerRejected, TaskApp
from visionrl_trainer.rollout.sampler import Batch, Sampler, SamplingFailed, training_seeds


def spec(**training: Any) -> JobSpec:
    return JobSpec(
        model=PolicyModel(base="tiny"),
        training=Training(iterations=1, group_size=4, groups_per_iteration=2, **training),
        rollout=Rollout(max_concurrent=3, policy_config=PolicySettings(top_p=0.5)),
    )


class StandIn(TaskApp):
    """Answers in place of the HTTP call; counts what is in flight.

    ``aborts``, ``foreign`` (another adapter answers) and ``unreadable`` are marks of the ``run_id``s that fail so.
    """

    def __init__(
        self,
        aborts: set[str] = frozenset(),  # type: ignore[assignment]
        same: str = "nothing",
        foreign: str = "nothing",
        unreadable: str = "nothing",
        reason: str = "turn_timeout",
    ) -> None:
        self.aborts, self.same, self.requests = aborts, same, list[RolloutRequest]()
        self.foreign, self.unreadable, self.reason = foreign, unreadable, reason
        self.in_flight = self.most = 0
        self.forgotten: list[str] = []

    async def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        self.requests.append(request)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        earned = 0.0 if self.same in request.run_id else float(len(self.requests))
        if self.unreadable in request.run_id:
            raise AnswerRejected("the task app's answer cannot be read: recursion limit exceeded")
        model = "base" if self.foreign in request.run_id else request.policy.config.model
        played = response([decision(reward=RewardSplit(event=earned), model=model)])
        played = played.model_copy(update={"run_id": request.run_id})
        if any(mark in request.run_id for mark in self.aborts):
            return played.model_copy(update={"aborted": True, "abort_reason": self.reason})
        return played


def sampler(taskapp: TaskApp, **training: int) -> Sampler:
    return Sampler(taskapp, spec(**training), "crafter", "http://inference", EXPECT)


async def test_a_group_is_one_start_state_played_as_often_as_asked() -> None:
    taskapp = StandIn()
    batch = await sampler(taskapp).collect(0, "crafter-v000000-0123456789ab")
    assert Counter(request.env.seed for request in taskapp.requests) == dict.fromkeys(training_seeds(0, 0, 2), 4)
    assert [len(group.episodes) for group in batch.groups] == [4, 4]
    assert taskapp.most <= 3


async def test_training_samples_the_whole_distribution_without_banned_tokens() -> None:
    taskapp = StandIn()
    await sampler(taskapp).collect(0, "crafter-v000000-0123456789ab")
    config = taskapp.requests[0].policy.config
    assert config.top_p == 1.0
    assert config.tool_choice == "auto"
    assert set(config.banned_token_ids) == EXPECT.banned_ids


async def test_an_aborted_episode_is_played_again_under_another_name() -> None:
    taskapp = StandIn({"g0/e1/r0"})
    batch = await sampler(taskapp).collect(0, "crafter-v000000-0123456789ab")
    assert batch.aborted == 1
    assert len(batch.groups[0].episodes) == 4
    assert len({request.run_id for request in taskapp.requests}) == 9


@pytest.mark.parametrize("poison", ["foreign", "unreadable"])
async def test_a_poisoned_answer_costs_one_sample(poison: str) -> None:
    """The task app would repeat it for the same ``run_id``: another one is asked for."""
    taskapp = StandIn(**{poison: "g0/e1/r0"})  # type: ignore[arg-type]
    batch = await sampler(taskapp).collect(0, "crafter-v000000-0123456789ab")
    assert (batch.rejected, batch.aborted, batch.rejected_rate) == (1, 0, pytest.approx(1 / 9))
    assert [len(group.episodes) for group in batch.groups] == [4, 4]
    assert len({request.run_id for request in taskapp.requests}) == 9
    assert [run_id.partition("/t0/")[2] for run_id in taskapp.forgotten] == ["g0/e1/r0"]
    trained = {episode.run_id for episode in batch.episodes}
    assert trained == {request.run_id for request in taskapp.requests} - set(taskapp.forgotten)


async def test_answers_of_another_version_alone_end_in_an_error_that_says_so() -> None:
    with pytest.raises(SamplingFailed, match=r"24 rejected \(the last: .*'base' answered, but 'crafter-v000003-"):
        await sampler(StandIn(foreign="/g")).collect(0, "crafter-v000003-0123456789ab")


async def test_an_episode_cut_at_max_ops_is_trained_on_as_far_as_it_was_played() -> None:
    batch = await sampler(StandIn({"/g"}, reason="max_ops")).collect(0, "crafter-v000000-0123456789ab")
    assert (batch.aborted, len(batch.episodes)) == (0, 8)


async def test_a_group_goes_on_without_an_episode_that_keeps_failing() -> None:
    batch = await sampler(StandIn({"g0/e1"})).collect(0, "crafter-v000000-0123456789ab")
    assert [len(group.episodes) for group in batch.groups] == [3, 4]


async def test_nothing_to_train_on_is_an_error_not_an_empty_step() -> None:
    with pytest.raises(SamplingFailed, match=r"no group kept two episodes: 24 aborted \(the last: turn_timeout"):
        await sampler(StandIn({"/g"})).collect(0, "crafter-v000000-0123456789ab")


async def test_groups_that_teach_nothing_are_replaced_as_often_as_allowed() -> None:
    taskapp = StandIn(same="t0/g1")
    batch = await sampler(taskapp, max_resampling=2).collect(0, "crafter-v000000-0123456789ab")
    assert batch.resampled == 1
    assert all(group.has_variance for group in batch.groups)
    assert len(batch.groups) == 2
    assert len(taskapp.requests) == 12


async def test_without_resampling_groups_that_teach_nothing_stay() -> None:
    batch = await sampler(StandIn(same="g1")).collect(0, "crafter-v000000-0123456789ab")
    assert [group.has_variance for group in batch.groups] == [True, False]


async def test_a_group_is_worked_on_while_others_are_still_played() -> None:
    """The second start state is played only when the first group was worked on."""
    worked_on, seen = asyncio.Event(), list[tuple[int, int]]()

    class Waits(StandIn):
        async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
            if "/g1/" in request.run_id:
                await worked_on.wait()
            return await super().rollout(request, patience)

    async def on_group(iteration: int, batch: Batch, group: Group) -> Group:
        seen.append((iteration, len(group.episodes)))
        worked_on.set()
        return Group(seed=7, episodes=group.episodes)

    played = Sampler(Waits(), spec(), "crafter", "http://inference", EXPECT, on_group=on_group)
    batch = await played.collect(3, "crafter-v000000-0123456789ab")
    assert seen == [(3, 4), (3, 4)]
    assert [group.seed for group in batch.groups] == [7, 7]
