"""The policies: a model behind an inference server, a script, and draws that ignore the observation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from visionrl.rollout import BLIND_POLICY, RANDOM_POLICY, SCRIPTED_POLICY, RolloutRequest, ToolCall
from visionrl.tools import tool_call_text, tool_schema
from visionrl_taskapp.envs.crafter import scripted
from visionrl_taskapp.envs.crafter.blind import blind_plan, random_plan
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


def make_policy(request: RolloutRequest, inference: InferenceClient) -> Policy:
    """The request's policy, for one episode."""
    name = request.policy.policy_name
    if name == SCRIPTED_POLICY:
        return ScriptedPolicy(request)
    return BlindPolicy(request) if name in (RANDOM_POLICY, BLIND_POLICY) else ModelPolicy(request, inference)


class ModelPolicy:
    """crafter-react."""

    def __init__(self, request: RolloutRequest, inference: InferenceClient) -> None:
        self._config = request.policy.config
        self._logprobs = request.record.logprobs
        self._inference = inference
        self._url = completion_url(self._config.inference_url)
        self._tools = [tool_schema(self._config.max_actions)]
        self._met = False

    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        body = completion_body(self._config, list(messages), self._tools, self._logprobs)
        connect_by = deadline if self._met else asyncio.get_running_loop().time() + FIRST_CONTACT_S
        began = time.perf_counter()
        completion = await self._inference.complete(self._url, body, self._logprobs, deadline, connect_by)
        inference_ms = 1000 * (time.perf_counter() - began)
        self._met = True
        parsed = parse(completion.message, self._config.max_actions)
        if isinstance(parsed, InvalidResponse):
            cut_off = "; the response was cut off at max_tokens" if completion.finish_reason == "length" else ""
            actions: tuple[str, ...] = ("noop",)
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
    """crafter-scripted: its response is the scripted plan; with `perturbation`, some turns execute other actions."""

    def __init__(self, request: RolloutRequest) -> None:
        config = request.policy.config
        self._max_actions = config.max_actions
        self._rng = np.random.default_rng((request.env.seed, _PERTURBATION_STREAM))
        # The rate differs between episodes: some follow the script throughout, some are mostly noise.
        self._rate = config.perturbation * self._rng.uniform(0, 2)

    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        plan = scripted.plan(observation.view, self._max_actions)
        text = tool_call_text(plan)
        return PolicyOutput(
            text=text,
            calls=(call(plan),),
            actions=tuple(scripted.perturbed(plan, self._rate, self._max_actions, self._rng)),
            model=SCRIPTED_POLICY,
            label=text,
            finish_reason="stop",
        )


class BlindPolicy:
    """crafter-random and crafter-blind: draw actions without the observation, reproducibly from the episode's seed."""

    def __init__(self, request: RolloutRequest) -> None:
        self._name = request.policy.policy_name
        self._plan = blind_plan if self._name == BLIND_POLICY else random_plan
        self._max_actions = request.policy.config.max_actions
        self._rng = np.random.default_rng((request.env.seed, _BLIND_STREAM))

    async def act(self, observation: Observation, messages: Sequence[Message], deadline: float) -> PolicyOutput:
        plan = self._plan(self._max_actions, self._rng)
        return PolicyOutput(
            text=tool_call_text(plan), calls=(call(plan),), actions=tuple(plan), model=self._name, finish_reason="stop"
        )  # fmt: skip
