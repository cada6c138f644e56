"""Who decides: a model behind an inference server, the scripted teacher, or a player that does not look."""

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
from visionrl_taskapp.policies.inference_client import FIRST_CONTACT_S, InferenceClient, completion_body, completion_url
from visionrl_taskapp.policies.prompt import Message
from visionrl_taskapp.policies.toolcalls import InvalidAnswer, call, message_text, parse
from visionrl_taskapp.rollouts.simulation import Observation

# Keep these random streams apart from each other and from every other use of an episode's seed.
_PERTURBATION_STREAM, _SIGHTLESS_STREAM = 1, 2


@dataclass(frozen=True)
class Choice:
    """A decision before it is executed."""

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
    usage: Mapping[str, Any] = field(default_factory=dict)
    inference_ms: float = 0.0


class Decider(Protocol):
    async def decide(self, observation: Observation, messages: Sequence[Message], deadline: float) -> Choice:
        """Decide before `deadline` (the event loop's clock); `TimeoutError` or `InferenceError` if that fails."""
        ...


def decider(request: RolloutRequest, inference: InferenceClient) -> Decider:
    """The request's policy, for one episode."""
    name = request.policy.policy_name
    if name == SCRIPTED_POLICY:
        return Teacher(request)
    return Sightless(request) if name in (RANDOM_POLICY, BLIND_POLICY) else ModelPolicy(request, inference)


class ModelPolicy:
    """crafter-react."""

    def __init__(self, request: RolloutRequest, inference: InferenceClient) -> None:
        self._config = request.policy.config
        self._logprobs = request.record.logprobs
        self._inference = inference
        self._url = completion_url(self._config.inference_url)
        self._tools = [tool_schema(self._config.max_actions)]
        self._met = False

    async def decide(self, observation: Observation, messages: Sequence[Message], deadline: float) -> Choice:
        body = completion_body(self._config, list(messages), self._tools, self._logprobs)
        connect_by = deadline if self._met else asyncio.get_running_loop().time() + FIRST_CONTACT_S
        began = time.perf_counter()
        answer = await self._inference.complete(self._url, body, self._logprobs, deadline, connect_by)
        inference_ms = 1000 * (time.perf_counter() - began)
        self._met = True
        parsed = parse(answer.message, self._config.max_actions)
        if isinstance(parsed, InvalidAnswer):
            cut_off = "; the answer was cut off at max_tokens" if answer.finish_reason == "length" else ""
            actions: tuple[str, ...] = ("noop",)
            error: str | None = parsed.message + cut_off
        else:
            actions, error = parsed.actions, None
        return Choice(
            text=message_text(answer.message),
            calls=parsed.calls,
            actions=actions,
            model=answer.model or self._config.model,
            error=error,
            finish_reason=answer.finish_reason,
            prompt_token_ids=answer.prompt_token_ids,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            usage=answer.usage,
            inference_ms=inference_ms,
        )


class Teacher:
    """crafter-scripted: says what is best, and with `perturbation` sometimes does something else."""

    def __init__(self, request: RolloutRequest) -> None:
        config = request.policy.config
        self._max_actions = config.max_actions
        self._rng = np.random.default_rng((request.env.seed, _PERTURBATION_STREAM))
        # The rate differs between episodes, so that some show the teacher alone and some are mostly noise.
        self._rate = config.perturbation * self._rng.uniform(0, 2)

    async def decide(self, observation: Observation, messages: Sequence[Message], deadline: float) -> Choice:
        plan = scripted.plan(observation.view, self._max_actions)
        text = tool_call_text(plan)
        return Choice(
            text=text,
            calls=(call(plan),),
            actions=tuple(scripted.perturbed(plan, self._rate, self._max_actions, self._rng)),
            model=SCRIPTED_POLICY,
            label=text,
            finish_reason="stop",
        )


class Sightless:
    """crafter-random and crafter-blind: draw actions without looking; an episode's draws follow from its seed."""

    def __init__(self, request: RolloutRequest) -> None:
        self._name = request.policy.policy_name
        self._plan = blind_plan if self._name == BLIND_POLICY else random_plan
        self._max_actions = request.policy.config.max_actions
        self._rng = np.random.default_rng((request.env.seed, _SIGHTLESS_STREAM))

    async def decide(self, observation: Observation, messages: Sequence[Message], deadline: float) -> Choice:
        plan = self._plan(self._max_actions, self._rng)
        return Choice(
            text=tool_call_text(plan), calls=(call(plan),), actions=tuple(plan), model=self._name, finish_reason="stop"
        )  # fmt: skip
