"""What a request must fulfil beyond its schema; each rule names the field and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from visionrl.checks import Problem
from visionrl.problems import problems
from visionrl.rollout import RolloutRequest
from visionrl_taskapp.envs.registry import EnvironmentRefused, Prepared, prepare
from visionrl_taskapp.policies.completions import completion_url
from visionrl_taskapp.policies.prompt import has_control_tokens, sends_frames

# Fields that the reference system's clients send and nothing here uses.
_UNUSED = (
    ("on_done",),
    ("synth_base_url",),
    ("env", "env_id"),
    ("env", "config", "env_params"),
    ("env", "config", "step_rewards"),
    ("policy", "policy_id"),
    ("policy", "config", "provider"),
    ("policy", "config", "use_tools"),
    ("record", "value"),
)

_OPEN: tuple[tuple[str, ...], ...] = ((), ("env",), ("policy",))
"""Places of a request where null stands for a default."""

# vLLM samples at 0.01 where a request says less, and at 0 it does not sample.
MIN_TRAINING_TEMPERATURE = 0.01

# Rewards of an episode are summed: beyond this a sum could overflow.
_MAX_REWARD = 1e6


class RequestError(Exception):
    """A request that cannot be played, with everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def parse_request(data: Any) -> RolloutRequest:
    """The request of a decoded JSON body, without its unused fields. Raises :class:`RequestError`."""
    if not isinstance(data, dict):
        raise RequestError([Problem("", f"the body must be a JSON object, not {type(data).__name__}")])
    try:
        request = RolloutRequest.model_validate(_without_unused(data))
    except ValidationError as error:
        raise RequestError(list(problems(error, RolloutRequest, by_alias=False))) from None
    try:
        game = prepare(request.env.env_name, request.env.config)
    except EnvironmentRefused as error:
        raise RequestError([Problem(_in_request(each.path), each.message) for each in error.problems]) from None
    if wrong := [problem for check in _CHECKS for problem in check(request, game)]:
        raise RequestError(wrong)
    return request


def _in_request(path: str) -> str:
    """The path below `rollout` of a job file, as a request has it."""
    name, _, rest = path.partition(".")
    return {"envName": "env.env_name", "envConfig": "env.config"}[name] + (f".{rest}" if rest else "")


def unused_fields(data: Any) -> list[str]:
    """The fields of a decoded JSON body that are accepted and have no effect, as dotted paths."""
    return [".".join(path) for path in _UNUSED if _at(data, path) is not None]


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _without_unused(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Without unused fields, and without the nulls that the reference's clients send for what they leave open."""
    kept = {
        name: value
        for name, value in data.items()
        if (*path, name) not in _UNUSED and not (value is None and path in _OPEN)
    }
    return {
        name: _without_unused(value, (*path, name)) if isinstance(value, Mapping) and len(path) < 2 else value
        for name, value in kept.items()
    }


def _model(request: RolloutRequest, _game: Prepared) -> Iterator[Problem]:
    config, needed = request.policy.config, request.policy.kind == "react"
    if not config.model and needed:
        yield Problem("policy.config.model", "required: the model's or adapter's name at the inference server")
    if config.inference_url:
        try:
            completion_url(config.inference_url)
        except ValueError as error:
            yield Problem("policy.config.inference_url", str(error))
    elif needed:
        yield Problem("policy.config.inference_url", "required: base URL of an OpenAI-compatible server")


def _vision(request: RolloutRequest, _game: Prepared) -> Iterator[Problem]:
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


def _prompt(request: RolloutRequest, _game: Prepared) -> Iterator[Problem]:
    prompt = request.policy.config.system_prompt
    if prompt and has_control_tokens(prompt):
        yield Problem("policy.config.system_prompt", "spells a control token, such as <|im_end|>: describe it instead")


def _sampling(request: RolloutRequest, _game: Prepared) -> Iterator[Problem]:
    config = request.policy.config
    if not request.record.logprobs:
        return
    if config.tool_choice != "auto":
        yield Problem("policy.config.tool_choice", "must be auto with record.logprobs: a grammar masks the logprobs")
    if config.top_k not in (None, -1):
        yield Problem("policy.config.top_k", "must be empty with record.logprobs: it cuts off the distribution")
    if not config.temperature >= MIN_TRAINING_TEMPERATURE:
        yield Problem(
            "policy.config.temperature",
            f"must be at least {MIN_TRAINING_TEMPERATURE:g} with record.logprobs: a server samples nothing below",
        )


def _policy(request: RolloutRequest, game: Prepared) -> Iterator[Problem]:
    name, kind = request.policy.policy_name, request.policy.kind
    if name != f"{game.name}-{kind}":
        yield Problem("policy.policy_name", f"is {name!r}, of another environment: write {game.name}-{kind}")
    if kind == "scripted" and game.description.player is None:
        yield Problem("policy.policy_name", f"{game.name} has no player of its own; play {game.name}-random")
    if kind == "blind" and game.description.blind is None:
        yield Problem("policy.policy_name", f"the best blind play of {game.name} is not known; play {game.name}-random")


def _seed(request: RolloutRequest, game: Prepared) -> Iterator[Problem]:
    first, last = game.description.seeds
    if not first <= request.env.seed <= last:
        yield Problem("env.seed", f"{game.name} has seeds from {first} to {last}")


def _without_model(request: RolloutRequest, _game: Prepared) -> Iterator[Problem]:
    name, kind = request.policy.policy_name, request.policy.kind
    if kind != "react" and request.record.logprobs:
        yield Problem("record.logprobs", f"{name} samples no tokens")
    if kind != "scripted" and request.policy.config.perturbation:
        yield Problem("policy.config.perturbation", f"only with policy_name {request.env.env_name}-scripted")


def _shape(request: RolloutRequest, game: Prepared) -> Iterator[Problem]:
    for index, op in enumerate(request.ops or ()):
        expected = ("agent", "env")[index % 2]
        if op != expected:
            yield Problem(f"ops[{index}]", f"must be {expected!r}: operations alternate, beginning with 'agent'")
            return
    if request.safety.max_ops < 2:
        yield Problem("safety.max_ops", "must be at least 2: a model call and an environment step")
    for name in request.rewards.weights:
        if name not in game.description.events:
            known = ", ".join(game.description.events) or "none"
            yield Problem(f"rewards.weights.{name}", f"no event of {game.name}; known: {known}")
    sizes = {"step_lambda": request.rewards.step_lambda, "invalid_penalty": request.rewards.invalid_penalty}
    for name, size in (sizes | {f"weights.{name}": size for name, size in request.rewards.weights.items()}).items():
        if not abs(size) <= _MAX_REWARD:
            yield Problem(f"rewards.{name}", f"must be a number from -{_MAX_REWARD:g} to {_MAX_REWARD:g}")
    if request.rewards.weights and request.rewards.step_rewards != "per_achievement":
        yield Problem("rewards.weights", "only with step_rewards per_achievement")


_CHECKS = (_policy, _seed, _model, _vision, _prompt, _sampling, _without_model, _shape)
