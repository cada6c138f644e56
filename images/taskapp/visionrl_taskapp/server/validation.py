"""What a request must fulfil beyond its schema; each rule names the field and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from visionrl.checks import Problem
from visionrl.jobfile import problems
from visionrl.rollout import MODEL_POLICY, SCRIPTED_POLICY, RolloutRequest
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS
from visionrl_taskapp.policies.inference_client import completion_url
from visionrl_taskapp.policies.prompt import has_control_tokens, sends_frames


class RequestError(Exception):
    """A request that cannot be played, with everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def parse_request(data: Any) -> RolloutRequest:
    """The request of a decoded JSON body. Raises :class:`RequestError`."""
    if not isinstance(data, dict):
        raise RequestError([Problem("", f"the body must be a JSON object, not {type(data).__name__}")])
    try:
        request = RolloutRequest.model_validate(data)
    except ValidationError as error:
        raise RequestError(list(problems(error, RolloutRequest, by_alias=False))) from None
    if wrong := [problem for check in _CHECKS for problem in check(request)]:
        raise RequestError(wrong)
    return request


def _model(request: RolloutRequest) -> Iterator[Problem]:
    config, needed = request.policy.config, request.policy.policy_name == MODEL_POLICY
    if not config.model and needed:
        yield Problem("policy.config.model", "required: the model's or adapter's name at the inference server")
    if config.inference_url:
        try:
            completion_url(config.inference_url)
        except ValueError as error:
            yield Problem("policy.config.inference_url", str(error))
    elif needed:
        yield Problem("policy.config.inference_url", "required: base URL of an OpenAI-compatible server")


def _vision(request: RolloutRequest) -> Iterator[Problem]:
    config = request.policy.config
    if sends_frames(config):
        return
    if config.image_only_mode:
        yield Problem(
            "policy.config.image_only_mode",
            f"is true, but no frames are sent to {config.model!r}: set use_vision to true if the model takes images "
            "(adapters are not known by their names), or image_only_mode to false",
        )
    if config.image_control != "none":
        yield Problem("policy.config.image_control", "needs frames: set use_vision to true")


def _prompt(request: RolloutRequest) -> Iterator[Problem]:
    prompt = request.policy.config.system_prompt
    if prompt and has_control_tokens(prompt):
        yield Problem("policy.config.system_prompt", "spells a control token, such as <|im_end|>: describe it instead")


def _sampling(request: RolloutRequest) -> Iterator[Problem]:
    config = request.policy.config
    if not request.record.logprobs:
        return
    if config.tool_choice != "auto":
        yield Problem("policy.config.tool_choice", "must be auto with record.logprobs: a grammar masks the logprobs")
    if config.top_k not in (None, -1):
        yield Problem("policy.config.top_k", "must be empty with record.logprobs: it cuts off the distribution")


def _without_model(request: RolloutRequest) -> Iterator[Problem]:
    name = request.policy.policy_name
    if name != MODEL_POLICY and request.record.logprobs:
        yield Problem("record.logprobs", f"{name} samples no tokens")
    if name != SCRIPTED_POLICY and request.policy.config.perturbation:
        yield Problem("policy.config.perturbation", f"only with policy_name {SCRIPTED_POLICY}")


def _shape(request: RolloutRequest) -> Iterator[Problem]:
    for index, op in enumerate(request.ops or ()):
        expected = ("agent", "env")[index % 2]
        if op != expected:
            yield Problem(f"ops[{index}]", f"must be {expected!r}: operations alternate, beginning with 'agent'")
            return
    if request.safety.max_ops < 2:
        yield Problem("safety.max_ops", "must be at least 2: a model call and an environment step")
    for name in request.rewards.weights:
        if name not in ACHIEVEMENTS:
            yield Problem(f"rewards.weights.{name}", f"no achievement; known: {', '.join(ACHIEVEMENTS)}")
    if request.rewards.weights and request.rewards.step_rewards != "per_achievement":
        yield Problem("rewards.weights", "only with step_rewards per_achievement")


_CHECKS = (_model, _vision, _prompt, _sampling, _without_model, _shape)
