"""What an episode does with good, bad, slow and missing responses."""

import asyncio
import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
import pytest
from yarl import URL

from visionrl.frames import decode_png, frame_hash
from visionrl.rollout import RolloutResponse
from visionrl.tools import tool_call_text
from visionrl_taskapp.envs.crafter.env import CrafterEnv
from visionrl_taskapp.policies.completions import Completion, InferenceError
from visionrl_taskapp.policies.inference_client import InferenceClient, UnreachableError
from visionrl_taskapp.rollouts.episode import Services, UnreachableInferenceError, play
from visionrl_taskapp.rollouts.simulation import GREY, Worlds
from visionrl_taskapp.rollouts.trajectory import response
from visionrl_taskapp.server.validation import RequestError, parse_request

WOOD_SEED = 2_000_007

Reply = str | Exception | Callable[[float], Awaitable[str | None]]
"""What a stand-in model answers; a call gets the deadline."""


class Model:
    """Stands for the inference server: answers in turn with texts, errors or the result of a call."""

    def __init__(self, *answers: Reply) -> None:
        self.answers = itertools.cycle(answers)
        self.bodies: list[dict[str, Any]] = []

    async def complete(
        self, url: URL, body: Mapping[str, Any], logprobs: bool, deadline: float, connect_by: float
    ) -> Completion:
        self.bodies.append(json.loads(json.dumps(body)))
        reply = next(self.answers)
        if isinstance(reply, Exception):
            raise reply
        content = await reply(deadline) if callable(reply) else reply
        message, usage = {"role": "assistant", "content": content}, {"prompt_tokens": 3}
        if not logprobs:
            return Completion(message, "job-v000003", "stop", usage)
        return Completion(message, "job-v000003", "stop", usage, [1, 2, 3], [4, 5], [-0.5, -1.0])


MakeServices = Callable[[Model | None], Services]


class Roll(Protocol):
    """Plays an episode with a model; `policy__config__max_actions=8` changes that field of the request."""

    async def __call__(self, model: Model, **changes: Any) -> RolloutResponse: ...


DO = tool_call_text(["do", "do"])


def request_data(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "run_id": "run-1",
        "mode": "rl",
        "env": {"seed": WOOD_SEED, "config": {"image_size": 72}},
        "policy": {"config": {"model": "tiny", "inference_url": "http://inference:8000", "max_llm_calls": 3}},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return data


@pytest.fixture
def services() -> Iterator[MakeServices]:
    with ThreadPoolExecutor(2) as workers:
        yield lambda model: Services(Worlds(), cast(InferenceClient, model), workers)


@pytest.fixture
def roll(services: MakeServices) -> Roll:
    async def roll_one(model: Model, **changes: Any) -> RolloutResponse:
        return response(await play(parse_request(request_data(**changes)), services(model)))

    return roll_one


def scripted(**changes: Any) -> dict[str, Any]:
    return request_data(policy__policy_name="crafter-scripted", policy__config={"max_llm_calls": 12}, **changes)


async def test_an_episode_plays_its_turns_and_records_everything_about_them(roll: Roll) -> None:
    answer = await roll(Model(DO), record__logprobs=True, record__images=True, record__messages=True)
    [trajectory] = answer.trajectories
    assert (answer.aborted, trajectory.length, answer.ops_executed) == (False, 3, 3 + 6)
    assert len(trajectory.steps) == len(trajectory.decisions) == len(trajectory.decision_samples) == 3
    for index, decision in enumerate(trajectory.decisions):
        assert (decision.index, decision.valid, decision.actions) == (index, True, ["do", "do"])
        assert (decision.prompt_token_ids, decision.token_ids, decision.logprobs) == ([1, 2, 3], [4, 5], [-0.5, -1.0])
        assert decision.model == "job-v000003"
        [image] = decision.images
        assert frame_hash(decode_png(base64.b64decode(answer.images[image]))) == image
        assert decision.messages is not None
        assert decision.messages[-1]["content"] == [{"type": "image", "sha256": image}]
    assert answer.tools is not None
    assert answer.tools[0]["function"]["name"] == "interact_many"
    assert [step.truncated for step in trajectory.steps] == [False, False, True]


async def test_the_frame_that_is_sent_is_the_simulators(roll: Roll) -> None:
    model = Model(DO)
    answer = await roll(model)
    env = CrafterEnv(72)
    env.reset(WOOD_SEED)
    for body, decision in zip(model.bodies, answer.trajectories[0].decisions, strict=True):
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        sent = decode_png(base64.b64decode(url.partition(",")[2]))
        assert np.array_equal(sent, env.render())
        assert decision.images == [frame_hash(env.render())]
        assert decision.state_hash == env.state_hash()
        for action in decision.actions:
            env.step(action)


async def test_rewards_count_what_the_simulator_unlocks(roll: Roll) -> None:
    answer = await roll(Model(DO), policy__config__max_llm_calls=20)
    decisions = answer.trajectories[0].decisions
    unlocked = [name for decision in decisions for name in decision.unlocked]
    assert len(unlocked) == len(set(unlocked)) > 0
    assert answer.metrics.mean_return == answer.metrics.events_score == len(unlocked)
    assert [d.reward.event for d in decisions] == [len(d.unlocked) for d in decisions]


async def test_an_invalid_answer_executes_one_noop_and_costs_the_penalty(roll: Roll) -> None:
    answer = await roll(Model("I will gather wood."), rewards__invalid_penalty=0.25)
    for decision in answer.trajectories[0].decisions:
        assert (decision.valid, decision.actions) == (False, ["noop"])
        assert decision.error is not None
        assert "no tool call" in decision.error
        assert decision.reward.total == -0.25
    assert answer.metrics.details["invalid_answers"] == 3


async def test_the_model_is_shown_its_own_former_answers(roll: Roll) -> None:
    model = Model(DO, "Hm.")
    await roll(model, policy__config__history_turns=2)
    assert [m["content"] for m in model.bodies[2]["messages"] if m["role"] == "assistant"] == [DO, "Hm."]


async def test_no_action_is_done_after_the_end(roll: Roll) -> None:
    answer = await roll(Model(tool_call_text(["noop"] * 5)), env__config__length=7, policy__config__max_llm_calls=10)
    decisions = answer.trajectories[0].decisions
    assert [len(decision.actions) for decision in decisions] == [5, 2]
    assert [decision.done for decision in decisions] == [False, True]
    assert answer.aborted is False


async def test_a_dead_player_does_not_act_on(roll: Roll) -> None:
    answer = await roll(
        Model(tool_call_text(["sleep"] * 8)),
        policy__config__max_actions=8,
        policy__config__max_llm_calls=2000,
        safety__max_ops=10_000,
        env__config__difficulty="hard",
        record__trajectories=False,
    )
    [trajectory] = answer.trajectories
    assert trajectory.final["dead"] is True
    assert trajectory.decisions[-1].done is True
    assert [decision.done for decision in trajectory.decisions[:-1]] == [False] * (trajectory.length - 1)


@pytest.mark.parametrize(
    ("ops", "explicit", "turns"), [(["agent", "env"] * 4, None, 4), (["agent", "env"] * 4, 2, 2), ([], 2, 2)]
)
async def test_ops_bound_the_turns(roll: Roll, ops: list[str], explicit: int | None, turns: int) -> None:
    config: dict[str, Any] = {"model": "tiny", "inference_url": "http://inference:8000"}
    config |= {"max_llm_calls": explicit} if explicit else {}
    answer = await roll(Model(DO), ops=ops, policy__config=config)
    assert answer.trajectories[0].length == turns


@pytest.mark.parametrize(("max_ops", "played"), [(9, [5, 2]), (7, [5]), (12, [5, 5]), (13, [5, 5])])
async def test_an_episode_that_reaches_max_ops_is_truncated_and_can_be_trained_on(
    roll: Roll, max_ops: int, played: list[int]
) -> None:
    answer = await roll(Model(tool_call_text(["noop"] * 5)), safety__max_ops=max_ops)
    [trajectory] = answer.trajectories
    assert (answer.aborted, answer.abort_reason, answer.metrics.details["max_ops_reached"]) == (False, None, True)
    assert [len(decision.actions) for decision in trajectory.decisions] == played
    assert answer.ops_executed == sum(played) + len(played) <= max_ops
    assert [step.truncated for step in trajectory.steps] == [False] * (len(played) - 1) + [True]


async def test_an_episode_that_does_not_reach_max_ops_says_so(roll: Roll) -> None:
    answer = await roll(Model(DO), safety__max_ops=9)
    assert (answer.ops_executed, answer.metrics.details["max_ops_reached"]) == (9, False)


async def hang(deadline: float) -> None:
    async with asyncio.timeout_at(deadline):
        await asyncio.Event().wait()


async def test_a_turn_beyond_its_deadline_aborts_and_keeps_what_was_played(roll: Roll) -> None:
    answer = await roll(Model(DO, hang), policy__config__turn_timeout_s=0.05)
    assert (answer.aborted, answer.abort_reason) == (True, "turn_timeout")
    assert answer.abort_message is not None
    assert "turn_timeout_s (0.05 s)" in answer.abort_message
    assert answer.trajectories[0].length == 1


async def test_an_episode_beyond_its_time_aborts(roll: Roll) -> None:
    answer = await roll(Model(DO, hang), safety__max_time_s=0.5)
    assert answer.abort_reason == "max_time"
    assert answer.trajectories[0].length == 1


async def test_a_server_that_fails_later_aborts_with_its_error(roll: Roll) -> None:
    answer = await roll(Model(DO, InferenceError("http://inference answered 400: too long")))
    assert answer.abort_reason == "inference_error"
    assert answer.abort_message is not None
    assert "too long" in answer.abort_message
    answer = await roll(Model(DO, UnreachableError("cannot connect")))
    assert answer.abort_reason == "inference_error"


async def test_a_server_that_was_never_reached_is_an_error_of_the_request(roll: Roll) -> None:
    with pytest.raises(UnreachableInferenceError) as caught:
        await roll(Model(UnreachableError("cannot connect to http://inference:8000")))
    assert caught.value.problem.path == "policy.config.inference_url"


async def test_a_cancelled_episode_keeps_what_was_played(services: MakeServices) -> None:
    begun = asyncio.Event()

    async def wait(_deadline: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(play(parse_request(request_data()), services(Model(DO, wait))))
    await begun.wait()
    task.cancel()
    episode = await task
    assert episode.abort is not None
    assert (episode.abort.reason, len(episode.turns)) == ("cancelled", 1)


async def test_episodes_of_a_group_start_with_identical_frames(services: MakeServices) -> None:
    shared = services(Model(DO))
    requests = [parse_request(request_data(run_id=f"run-{member}")) for member in range(8)]
    episodes = await asyncio.gather(*(play(request, shared) for request in requests))
    assert len({episode.turns[0].decision.images[0] for episode in episodes}) == 1
    assert len({episode.turns[0].decision.state_hash for episode in episodes}) == 1
    assert len({tuple(turn.decision.state_hash for turn in episode.turns) for episode in episodes}) == 1


async def test_a_text_policy_sends_the_state_and_no_frame(roll: Roll) -> None:
    model = Model(DO)
    answer = await roll(model, policy__config__use_vision=False, policy__config__image_only_mode=False)
    assert all(isinstance(message["content"], str) for message in model.bodies[0]["messages"])
    assert answer.trajectories[0].decisions[0].images == []
    assert "health" in answer.trajectories[0].steps[0].obs["text"]


async def test_the_grey_control_sends_grey_frames_and_changes_nothing_else(roll: Roll) -> None:
    plain = await roll(Model(DO))
    grey = await roll(Model(DO), policy__config__image_control="grey", record__images=True)
    [image] = grey.images.values()
    assert set(np.unique(decode_png(base64.b64decode(image)))) == {GREY}
    assert _states(grey) == _states(plain)


async def test_the_shuffled_control_sends_real_frames_of_another_episode(roll: Roll) -> None:
    plain = await roll(Model(DO))
    first, second = [await roll(Model(DO), policy__config__image_control="shuffled") for _ in range(2)]
    assert _states(first) == _states(plain)
    assert _images(first) == _images(second)
    assert not set(_images(first)) & set(_images(plain))
    assert len(set(_images(first))) == 3


async def test_the_teacher_needs_no_server_and_labels_every_decision(services: MakeServices) -> None:
    request = parse_request(scripted(record__messages=True, record__images=True))
    decisions = response(await play(request, services(None))).trajectories[0].decisions
    assert len(decisions) == 12
    for decision in decisions:
        assert decision.label == decision.text == tool_call_text(decision.tool_calls[0].arguments["actions"])
        assert decision.messages is not None
        assert decision.messages[0]["role"] == "system"
    assert decisions[1].messages is not None
    assert decisions[1].messages[-2] == {"role": "assistant", "content": decisions[0].label}


async def test_perturbation_changes_what_is_done_and_never_the_label(services: MakeServices) -> None:
    request = scripted()
    request["policy"]["config"] |= {"perturbation": 1.0}
    first, second = [response(await play(parse_request(request), services(None))) for _ in range(2)]
    decisions = first.trajectories[0].decisions
    differing = [d for d in decisions if tool_call_text(d.actions) != d.label]
    assert differing
    assert all(decision.valid for decision in decisions)
    assert _states(first) == _states(second), "deterministic in the seed"


PROGRAM = """
import asyncio, json, sys
from concurrent.futures import ThreadPoolExecutor
from visionrl_taskapp.rollouts.episode import Services, play
from visionrl_taskapp.rollouts.simulation import Worlds
from visionrl_taskapp.server.validation import RequestError, parse_request
request = parse_request(json.loads(sys.argv[1]))
episode = asyncio.run(play(request, Services(Worlds(), None, ThreadPoolExecutor(1))))
print(json.dumps([[t.decision.state_hash, t.decision.images, t.decision.actions] for t in episode.turns]))
"""


def test_the_same_seed_and_actions_give_the_same_trajectory_in_two_processes() -> None:
    data = scripted()
    data["policy"]["config"] |= {"perturbation": 0.5, "max_llm_calls": 40}
    commands = [sys.executable, "-c", PROGRAM, json.dumps(data)]
    first, second = (subprocess.run(commands, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert len(json.loads(first)) > 20
    assert first == second


def _states(answer: RolloutResponse) -> list[str]:
    return [decision.state_hash for decision in answer.trajectories[0].decisions]


def _images(answer: RolloutResponse) -> list[str]:
    return [decision.images[0] for decision in answer.trajectories[0].decisions]


# --- policies without an observation


@pytest.mark.parametrize("name", ["crafter-random", "crafter-blind"])
async def test_a_policy_without_an_observation_is_reproducible_from_its_seed(services: MakeServices, name: str) -> None:
    async def actions(seed: int, control: str = "none") -> list[list[str]]:
        config = {"max_llm_calls": 6, "max_actions": 4, "image_control": control}
        request = request_data(policy__policy_name=name, policy__config=config, env__seed=seed)
        episode = await play(parse_request(request), services(None))
        assert {turn.decision.model for turn in episode.turns} == {name}
        assert all(turn.decision.valid and turn.decision.label is None for turn in episode.turns)
        return [turn.decision.actions for turn in episode.turns]

    assert await actions(WOOD_SEED) == await actions(WOOD_SEED, control="grey")
    assert await actions(WOOD_SEED) != await actions(WOOD_SEED + 1)


async def test_a_blind_player_is_not_perturbed_and_has_no_logprobs() -> None:
    for change in ({"record__logprobs": True}, {"policy__config": {"perturbation": 0.5}}):
        with pytest.raises(RequestError, match=r"crafter-blind samples no tokens|only with policy_name"):
            parse_request(request_data(**{"policy__config": {}, **change}, policy__policy_name="crafter-blind"))
