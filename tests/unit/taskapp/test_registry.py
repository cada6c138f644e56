"""Which environment a name and its settings give, and what is said where there is none."""

import importlib.metadata
from typing import Any

import pytest

from tests.unit.taskapp.test_episode import request_data
from visionrl.job import EnvSettings, Rollout
from visionrl_taskapp.envs import registry
from visionrl_taskapp.envs.registry import EnvironmentRefused, prepare
from visionrl_taskapp.server.validation import RequestError, parse_request


def refused(name: str, **settings: Any) -> dict[str, str]:
    with pytest.raises(EnvironmentRefused) as caught:
        prepare(name, EnvSettings(**settings))
    return {problem.path: problem.message for problem in caught.value.problems}


def test_equal_settings_are_prepared_once() -> None:
    assert prepare("crafter", EnvSettings(image_size=144)) is prepare("crafter", EnvSettings(image_size=144))


def test_an_unknown_environment_is_named_with_the_nearest_that_is_installed() -> None:
    assert refused("crofter") == {"envName": "no environment 'crofter' is installed here; did you mean crafter?"}


def test_settings_are_checked_by_the_environments_own_model() -> None:
    assert refused("crafter", lenght=7) == {"envConfig.lenght": "unknown key; did you mean length?"}


def test_a_package_that_brings_no_definition_is_told_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "wrong": importlib.metadata.EntryPoint("wrong", "math:pi", registry.GROUP),
        "broken": importlib.metadata.EntryPoint("broken", "no_such_module:X", registry.GROUP),
    }
    monkeypatch.setattr(registry, "environments", lambda: wrong)
    assert "math:pi is a float; name a visionrl_taskapp.envs.protocol.Definition" in refused("wrong")["envName"]
    assert "No module named 'no_such_module'" in refused("broken")["envName"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"env__env_name": "crofter"}, "env.env_name: no environment 'crofter'"),
        ({"env__config": {"lenght": 7}}, "env.config.lenght: unknown key"),
        ({"policy__policy_name": "chess-random"}, "policy.policy_name: is 'chess-random', of another environment"),
        ({"rewards": {"step_rewards": "per_achievement", "weights": {"win": 1.0}}}, "rewards.weights.win: no event of"),
    ],
)
def test_a_request_is_told_the_field(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(request_data(**change))
    assert problem in str(caught.value)


def test_a_job_keeps_the_settings_that_only_its_environment_knows() -> None:
    rollout = Rollout.model_validate({"envName": "lights", "envConfig": {"imageSize": 96, "lamps": {"red": 3}}})
    assert rollout.env_config.own == {"lamps": {"red": 3}}
    assert rollout == Rollout.model_validate_json(rollout.model_dump_json(by_alias=True))
