"""Whose answers a warm start imitates."""

from __future__ import annotations

import pytest

from tests.support.jobs import job
from tests.unit.trainer.test_intake import decision, response
from visionrl.rollout import RolloutRequest, RolloutResponse
from visionrl.tools import tool_call_text
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.sft import teacher

PLAN, EXECUTED = tool_call_text(["do"]), ["sleep", "sleep"]


class Disturbed(TaskApp):
    """One decision an episode, in which something else was executed than the player planned."""

    def __init__(self) -> None:
        self.asked: list[RolloutRequest] = []

    async def rollout(self, request: RolloutRequest, patience: float) -> RolloutResponse:
        self.asked.append(request)
        label = PLAN if request.policy.kind == "scripted" else None
        return response([decision(messages=[], text=PLAN, label=label, actions=EXECUTED)])


@pytest.mark.parametrize(
    ("player", "answer", "policy", "perturbation"),
    [
        ("scripted", PLAN, "crafter-scripted", 0.5),
        ("mixture", tool_call_text(EXECUTED), "crafter-scripted", 0.5),
        ("random", PLAN, "crafter-random", 0.0),
    ],
)
async def test_the_player_names_what_is_imitated(player: str, answer: str, policy: str, perturbation: float) -> None:
    settings = {"player": player, "episodes": 2, "steps": 1, "perturbation": 0.5}
    taskapp = Disturbed()
    found = await teacher.collect(taskapp, job({"training.warmStart": settings}).spec, "demo")
    assert {each.label for each in [*found.training, *found.validation]} == {answer}
    [name] = {request.policy.policy_name for request in taskapp.asked}
    assert (name, taskapp.asked[0].policy.config.perturbation) == (policy, perturbation)
