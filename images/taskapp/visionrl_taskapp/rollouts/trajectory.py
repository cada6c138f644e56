"""A played episode as the response of `POST /rollout`: pure functions from turns to the contract's types."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visionrl.rollout import (
    AbortReason,
    Decision,
    DecisionSample,
    Metrics,
    RolloutRequest,
    RolloutResponse,
    Step,
    Trajectory,
)
from visionrl.tools import tool_schema
from visionrl_taskapp.envs.protocol import Description
from visionrl_taskapp.policies.completions import correlation_id
from visionrl_taskapp.policies.prompt import Frame, Message


@dataclass(frozen=True)
class Turn:
    """A decision with everything that the response or the trace may include."""

    decision: Decision
    messages: list[Message]
    """The prompt, images by hash."""
    frame: Frame | None
    state: Mapping[str, Any]
    """What the environment tells of its state, before the decision."""
    text: str | None
    """The state as text, where the prompt had it."""
    unlocked_before: tuple[str, ...]
    state_after: Mapping[str, Any]
    scores: Mapping[str, float]
    """Of the episode, after the decision."""
    terminated: bool
    usage: Mapping[str, Any]
    ended: float
    """Unix time."""


@dataclass(frozen=True)
class Abort:
    reason: AbortReason
    message: str


@dataclass(frozen=True)
class Episode:
    """What was played."""

    request: RolloutRequest
    game: Description
    turns: tuple[Turn, ...]
    abort: Abort | None
    ops: int
    began: float
    """Unix time."""
    max_ops_reached: bool = False
    """Whether `safety.max_ops` truncated it."""

    @property
    def unlocked(self) -> tuple[str, ...]:
        """All events of the episode, in the description's order."""
        reached = {name for turn in self.turns for name in turn.decision.unlocked}
        return tuple(name for name in self.game.events if name in reached)

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that a model is offered."""
        return [tool_schema(self.game.actions, self.request.policy.config.max_actions, self.game.tool)]

    @property
    def env_steps(self) -> int:
        return sum(len(turn.decision.actions) for turn in self.turns)

    @property
    def frames(self) -> dict[str, bytes]:
        """PNG by hash, where they were kept."""
        return {turn.frame.sha256: turn.frame.png for turn in self.turns if turn.frame and turn.frame.png}


def response(episode: Episode, trace: dict[str, Any] | None = None) -> RolloutResponse:
    """The response to the episode's request."""
    request, abort = episode.request, episode.abort
    record, config = request.record, request.policy.config
    return RolloutResponse(
        run_id=request.run_id,
        trajectories=[_trajectory(episode)],
        metrics=_metrics(episode),
        images={h: base64.b64encode(png).decode() for h, png in episode.frames.items()} if record.images else {},
        tools=episode.tools if record.messages else None,
        trace=trace,
        trace_correlation_id=correlation_id(config.inference_url) if config.inference_url else None,
        pipeline_metadata={
            "mode": request.mode,
            "seed": request.env.seed,
            "policy_name": request.policy.policy_name,
            "model": config.model or request.policy.policy_name,
            "training_session_id": request.training_session_id,
        },
        aborted=abort is not None,
        abort_reason=abort.reason if abort else None,
        abort_message=abort.message if abort else None,
        ops_executed=episode.ops,
    )


def _trajectory(episode: Episode) -> Trajectory:
    request, turns = episode.request, episode.turns
    decisions = [turn.decision for turn in turns]
    return Trajectory(
        env_id=f"{request.env.env_name}/{request.run_id}",
        policy_id=f"{request.policy.policy_name}/{request.run_id}",
        inference_url=request.policy.config.inference_url,
        length=len(turns),
        steps=[_step(turn, last=turn is turns[-1]) for turn in turns] if request.record.trajectories else [],
        final=_final(episode),
        decision_samples=[_sample(decision) for decision in decisions],
        decisions=decisions,
    )


def _step(turn: Turn, last: bool) -> Step:
    decision = turn.decision
    observation: dict[str, Any] = {
        "images": decision.images,
        **turn.state,
        "achievements": list(turn.unlocked_before),
    }
    if turn.text is not None:
        observation["text"] = turn.text
    return Step(
        obs=observation,
        tool_calls=decision.tool_calls,
        reward=decision.reward.event,
        done=decision.done,
        truncated=last and not turn.terminated,
        info={
            "actions": decision.actions,
            "unlocked": decision.unlocked,
            "valid": decision.valid,
            "error": decision.error,
            "reward": decision.reward.model_dump(),
            "meta": decision.timings.model_dump(),
        },
    )


def _final(episode: Episode) -> dict[str, Any]:
    turns = episode.turns
    return {
        **(turns[-1].state_after if turns else {}),
        "achievements": list(episode.unlocked),
        "env_steps": episode.env_steps,
        "done": bool(turns) and turns[-1].decision.done,
        episode.game.terminated: bool(turns) and turns[-1].terminated,
        **(turns[-1].scores if turns else {}),
        "reward": sum(turn.decision.reward.total for turn in turns),
    }


def _sample(decision: Decision) -> DecisionSample:
    return DecisionSample(
        decision_index=decision.index,
        indicator=int(bool(decision.unlocked)),
        r_i=decision.reward.step,
        base=decision.reward.event,
        actions=decision.actions,
    )


def _metrics(episode: Episode) -> Metrics:
    turns = episode.turns
    achieved, best = _total(turns, "event"), episode.game.scores[0].best
    return Metrics(
        episode_returns=[achieved],
        mean_return=achieved,
        num_steps=episode.env_steps,
        num_episodes=1,
        outcome_score=achieved / best if best else achieved,
        events_score=achieved,
        scores=dict(turns[-1].scores) if turns else {},
        details={
            "achievements": list(episode.unlocked),
            "decisions": len(turns),
            "invalid_answers": sum(not turn.decision.valid for turn in turns),
            "step_reward": _total(turns, "step"),
            "penalty": _total(turns, "penalty"),
            "env_reward": _total(turns, "env"),
            episode.game.terminated: bool(turns) and turns[-1].terminated,
            "max_ops_reached": episode.max_ops_reached,
        },
    )


def _total(turns: Sequence[Turn], part: str) -> float:
    return float(sum(getattr(turn.decision.reward, part) for turn in turns))
