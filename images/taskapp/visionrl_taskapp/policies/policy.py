"""The policies: a model behind an inference server, a script, and draws that ignore the observation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from visionrl.rollout import RolloutRequest, ToolCall
from visionrl.tools import tool_call_text, tool_schema
from visionrl_taskapp.envs.protocol import Description
from visionrl_taskapp.envs.registry import Prepared
from visionrl_taskapp.policies.completions import completion_body, completion_url
from visionrl_taskapp.policies.inference_client import FIRST_CONTACT_S, InferenceClient
from visionrl_taskapp.policies.prompt import Message
from visionrl_taskapp.policies.toolcalls import InvalidResponse, call, message_text, parse
from visionrl_taskapp.rollouts.simulation import Observation

# Keep these random streams apart from each other and from every other use of an episode's seed.
_PERTURBATION_STREAM, _BLIND_STREAM = 1, 2


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says in one turn: its response and the actions to execute."""

    text: str
    calls: tuple[ToolCall, ...]
    actions: tuple[str, ...]
    model: str
    error: str | None = None
    label: str | None = None
    finish_reason: str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    server: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    inference_ms: float = 0.0


class Policy(Protocol):
    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        """Act before `deadline` (the event loop's clock). Raises `TimeoutError` or :class:`InferenceError`."""
        ...


def make_policy(request: RolloutRequest, game: Prepared, inference: InferenceClient) -> Policy:
    """The request's policy, for one episode."""
    match request.policy.kind:
        case "scripted":
            return ScriptedPolicy(request, game)
        case "random" | "blind":
            return BlindPolicy(request, game.description)
        case "react":
            return ModelPolicy(request, game.description, inference)


class ModelPolicy:
    """react: a model behind an inference server."""

    def __init__(self, request: RolloutRequest, game: Description, inference: InferenceClient) -> None:
        self._config, self._game = request.policy.config, game
        self._logprobs = request.record.logprobs
        self._inference = inference
        self._url = completion_url(self._config.inference_url)
        self._tools = [tool_schema(game.actions, self._config.max_actions, game.tool)]
        self._met = False

    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        body = completion_body(self._config, list(messages), self._tools, self._logprobs)
        connect_by = deadline if self._met else asyncio.get_running_loop().time() + FIRST_CONTACT_S
        began = time.perf_counter()
        completion = await self._inference.complete(self._url, body, self._logprobs, deadline, connect_by)
        inference_ms = 1000 * (time.perf_counter() - began)
        self._met = True
        parsed = parse(completion.message, self._game.actions, self._config.max_actions)
        if isinstance(parsed, InvalidResponse):
            cut_off = "; the response was cut off at max_tokens" if completion.finish_reason == "length" else ""
            actions: tuple[str, ...] = (self._game.idle,) if self._game.idle else ()
            error: str | None = parsed.message + cut_off
        else:
            actions, error = parsed.actions, None
        return PolicyOutput(
            text=message_text(completion.message),
            calls=parsed.calls,
            actions=actions,
            model=completion.model or self._config.model,
            error=error,
            finish_reason=completion.finish_reason,
            prompt_token_ids=completion.prompt_token_ids,
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            server=completion.server,
            usage=completion.usage,
            inference_ms=inference_ms,
        )


class ScriptedPolicy:
    """scripted: its response is the plan of the environment's player; with `perturbation`, some turns execute other
    actions, in places to which the player would not go. What it does there is what a learner that makes mistakes needs
    to imitate (the idea of DAgger, Ross et al. 2011)."""

    def __init__(self, request: RolloutRequest, game: Prepared) -> None:
        config = request.policy.config
        assert game.description.player, "a request for the player of an environment without one is refused"
        self._name, self._player = request.policy.policy_name, game.description.player
        self._max_actions = config.max_actions
        self._rng = np.random.default_rng((request.env.seed, _PERTURBATION_STREAM))
        # The rate differs between episodes: some follow the script throughout, some are mostly noise.
        self._rate = config.perturbation * self._rng.uniform(0, 2)

    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        plan = observation.plan
        text = tool_call_text(plan)
        disturbed = self._rng.random() < self._rate
        return PolicyOutput(
            text=text,
            calls=(call(plan),),
            actions=tuple(self._player.disturb(self._max_actions, self._rng)) if disturbed else plan,
            model=self._name,
            label=text,
            finish_reason="stop",
        )


class BlindPolicy:
    """random and blind: draw actions without the observation, reproducibly from the episode's seed."""

    def __init__(self, request: RolloutRequest, game: Description) -> None:
        self._name, self._game = request.policy.policy_name, game
        self._draw = blind_plan if request.policy.kind == "blind" else random_plan
        self._max_actions = request.policy.config.max_actions
        self._rng = np.random.default_rng((request.env.seed, _BLIND_STREAM))

    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        plan = self._draw(self._game, self._max_actions, self._rng)
        return PolicyOutput(
            text=tool_call_text(plan), calls=(call(plan),), actions=tuple(plan), model=self._name, finish_reason="stop"
        )  # fmt: skip


def random_plan(game: Description, max_actions: int, rng: np.random.Generator) -> list[str]:
    """1 to `max_actions` actions, uniformly."""
    return [str(action) for action in rng.choice(game.actions, size=rng.integers(1, max_actions + 1))]


def blind_plan(game: Description, max_actions: int, rng: np.random.Generator) -> list[str]:
    """`max_actions` actions of the environment's best distribution that ignores the observation."""
    assert game.blind, "a request for the blind policy of an environment without one is refused"
    names, weights = list(game.blind), np.array(list(game.blind.values()))
    return [str(action) for action in rng.choice(names, size=max_actions, p=weights / weights.sum())]
