"""One episode: observe, act, step, until it is done or a bound is reached.

An episode that cannot continue is aborted: its response says why and keeps the decisions that were made. One that
reaches `max_llm_calls` or `safety.max_ops` is truncated, which is an ordinary end. Only a first turn that cannot reach
the inference server at all is an error of the request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from visionrl import tracing
from visionrl.checks import Problem
from visionrl.rollout import AbortReason, Decision, RolloutRequest, Timings
from visionrl_taskapp.envs.registry import Prepared, prepare
from visionrl_taskapp.policies.completions import InferenceError
from visionrl_taskapp.policies.inference_client import InferenceClient, UnreachableError
from visionrl_taskapp.policies.policy import PolicyOutput, make_policy
from visionrl_taskapp.policies.prompt import (
    Frame,
    Message,
    PastTurn,
    build_messages,
    frames_of,
    system_prompt,
    with_pixels,
)
from visionrl_taskapp.rollouts.rewards import decision_reward
from visionrl_taskapp.rollouts.simulation import Observation, Simulation, TurnOutcome, Worlds
from visionrl_taskapp.rollouts.trajectory import Abort, Episode, Turn

T = TypeVar("T")
log = logging.getLogger(__name__)


class UnreachableInferenceError(Exception):
    """The first turn never reached the inference server; nothing was played."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problem = Problem("policy.config.inference_url", message)


@dataclass(frozen=True)
class Services:
    """What episodes share."""

    worlds: Worlds
    inference: InferenceClient
    workers: Executor
    """Threads for simulation and rendering."""
    waiters: Executor | None = None
    """Threads for environments on other machines; None: the workers."""
    keep_images: bool = False
    """Keep every frame's PNG for the traces, also where the response does not carry it."""


async def play(request: RolloutRequest, services: Services) -> Episode:
    """Play the episode that a valid request describes.

    Cancelling the task ends the episode as `cancelled`: the call still returns what was played. Raises
    :class:`UnreachableInferenceError`.
    """
    game = await asyncio.get_running_loop().run_in_executor(
        services.workers, prepare, request.env.env_name, request.env.config
    )
    loop = _EpisodeLoop(request, game, services)
    abort: Abort | None = None
    began = time.time()
    try:
        abort = await loop.run()
    except _EnvironmentFailed as error:
        abort = error.abort
    except asyncio.CancelledError:
        abort = Abort("cancelled", "the task app is shutting down")
    finally:
        loop.close()
    return Episode(request, game.description, tuple(loop.turns), abort, loop.ops, began, loop.max_ops_reached)


def turn_limit(request: RolloutRequest) -> int:
    """Turns of the episode: the agent operations where `ops` is given, within an explicit `max_llm_calls`."""
    config = request.policy.config
    if not request.ops:
        return config.max_llm_calls
    turns = request.ops.count("agent")
    return min(turns, config.max_llm_calls) if "max_llm_calls" in config.model_fields_set else turns


class _EpisodeLoop:
    """The loop's state: what has been played so far."""

    def __init__(self, request: RolloutRequest, game: Prepared, services: Services) -> None:
        self._request = request
        self._remote = game.definition.remote
        self._workers = services.waiters if self._remote and services.waiters else services.workers
        self._policy = make_policy(request, game, services.inference)
        self._simulation = Simulation(request, game, services.worlds)
        self._prompt = system_prompt(request.policy.config, game.description)
        record = request.record
        inline = record.return_trace and record.trace_format == "full"
        self._keep_images = services.keep_images or record.images or inline
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + request.safety.max_time_s
        self._last: Future[Any] | None = None
        self._past: list[PastTurn] = []
        self.turns: list[Turn] = []
        self.ops = 0
        self.max_ops_reached = False

    async def run(self) -> Abort | None:
        """Play to the end; None for an episode that was not aborted."""
        limit, max_ops = turn_limit(self._request), self._request.safety.max_ops
        observation: Observation | None = await self._work(self._simulation.begin)
        for index in range(limit):
            if observation is None:
                return None
            if self.ops + 2 > max_ops:
                self.max_ops_reached = True
                return None
            turn_watch = _Stopwatch()
            config = self._request.policy.config
            messages = build_messages(config, self._prompt, self._past, observation.frame, observation.text)
            frames = frames_of(config, self._past, observation.frame)
            decision_watch = _Stopwatch()
            output = await self._act(observation, with_pixels(messages, frames))
            if isinstance(output, Abort):
                return output
            decision_ms = decision_watch.ms()
            self.ops += 1
            actions = output.actions[: max_ops - self.ops]
            env_watch = _Stopwatch()
            outcome, following = await self._work(partial(self._simulation.advance, actions, index + 1 < limit))
            env_ms = env_watch.ms()
            self.ops += len(outcome.actions)
            timings = Timings(
                inference_ms=output.inference_ms,
                decision_ms=decision_ms - output.inference_ms,
                env_step_ms=env_ms,
                overhead_ms=turn_watch.ms() - decision_ms - env_ms,
            )
            self._record(observation, messages, frames, output, outcome, timings)
            if len(actions) < len(output.actions) and not outcome.done:
                self.max_ops_reached = True
                return None
            observation = following
        return None

    async def _act(self, observation: Observation, messages: list[Message]) -> PolicyOutput | Abort:
        config, now = self._request.policy.config, self._loop.time()
        deadline = min(self._end, now + config.turn_timeout_s)
        try:
            if now >= self._end:
                raise TimeoutError
            return await self._policy.act(observation, messages, deadline)
        except TimeoutError:
            return self._too_late(deadline)
        except UnreachableError as error:
            if not self.turns:
                raise UnreachableInferenceError(str(error)) from None
            return Abort("inference_error", str(error))
        except InferenceError as error:
            return Abort("inference_error", str(error))

    def _record(
        self,
        observation: Observation,
        messages: list[Message],
        frames: list[Frame],
        output: PolicyOutput,
        outcome: TurnOutcome,
        timings: Timings,
    ) -> None:
        request, frame = self._request, observation.frame
        valid = output.error is None
        decision = Decision(
            index=len(self.turns),
            images=[shown.sha256 for shown in frames],
            text=output.text,
            tool_calls=list(output.calls),
            valid=valid,
            error=output.error,
            actions=list(outcome.actions),
            unlocked=list(outcome.unlocked),
            reward=decision_reward(outcome.score, outcome.unlocked, valid, outcome.env_reward, request.rewards),
            done=outcome.done,
            model=output.model,
            server=output.server,
            finish_reason=output.finish_reason,
            prompt_token_ids=output.prompt_token_ids,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            state_hash=observation.state_hash,
            messages=messages if request.record.messages else None,
            label=output.label,
            timings=timings,
        )
        self.turns.append(
            Turn(
                decision=decision,
                messages=messages,
                frame=frame if self._keep_images else frame and replace(frame, png=b""),
                state=observation.state,
                text=observation.text,
                unlocked_before=observation.unlocked,
                state_after=outcome.state,
                scores=outcome.scores,
                terminated=outcome.terminated,
                usage=output.usage,
                ended=time.time(),
            )
        )
        self._past.append(PastTurn(frame, observation.text, output.text))

    def _too_late(self, deadline: float) -> Abort:
        if deadline == self._end:
            reason: AbortReason = "max_time"
            return Abort(reason, f"safety.max_time_s ({self._request.safety.max_time_s:g} s) is used up")
        limit = self._request.policy.config.turn_timeout_s
        return Abort("turn_timeout", f"no response within policy.config.turn_timeout_s ({limit:g} s)")

    async def _work(self, call: Callable[[], T]) -> T:
        """The call's result. On another machine it may take as long as a turn."""
        self._last = future = self._workers.submit(call)
        deadline = min(self._end, self._loop.time() + self._request.policy.config.turn_timeout_s)
        try:
            with tracing.span("environment"):
                async with asyncio.timeout_at(deadline if self._remote else None):
                    return await asyncio.wrap_future(future)
        except TimeoutError:
            raise _EnvironmentFailed(self._too_late(deadline)) from None
        except Exception as error:  # of an environment that is not ours: whatever it raises
            log.exception("%s: the environment failed", self._request.run_id)
            raise _EnvironmentFailed(Abort("environment_error", f"{type(error).__name__}: {error}"[:500])) from error

    def close(self) -> None:
        """Give back the environment: once the call that may still use it has ended, or in the middle of one that waits
        for another machine."""
        last, simulation = None if self._remote else self._last, self._simulation

        def give_back() -> None:
            wait([last] if last else [])
            simulation.close()

        self._workers.submit(give_back)


class _EnvironmentFailed(Exception):
    """A call of the environment raised, or took too long."""

    def __init__(self, abort: Abort) -> None:
        super().__init__(abort.message)
        self.abort = abort


class _Stopwatch:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def ms(self) -> float:
        return 1000 * (time.perf_counter() - self._start)
