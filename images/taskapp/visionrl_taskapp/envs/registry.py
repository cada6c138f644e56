"""Environments by name: those of this package, and those that installed packages bring.

A package brings one as an entry point of the group `visionrl.environments`, which names a `Definition`.
"""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from visionrl.job import EnvSettings
from visionrl.problems import Problem, nearest, problems
from visionrl_taskapp.envs.protocol import Definition, Description, Environment, PackageMissing, SettingsError

GROUP = "visionrl.environments"

_OWN = {
    name: importlib.metadata.EntryPoint(name, f"visionrl_taskapp.envs.{module}:DEFINITION", GROUP)
    for name, module in {"crafter": "crafter.environment", "gymnasium": "gymnasium", "openenv": "openenv"}.items()
}


class EnvironmentRefused(Exception):
    """There is no such environment, or not with these settings. Paths are below `rollout`, as a job file has them.

    `missing` says that another installation may have what is not here.
    """

    def __init__(self, found: list[Problem], missing: bool = False) -> None:
        super().__init__("; ".join(map(str, found)))
        self.problems, self.missing = found, missing


@dataclass(frozen=True, eq=False)
class Prepared:
    """An environment with checked settings."""

    name: str
    definition: Definition[Any]
    settings: Any
    description: Description
    key: str
    """Equal for equal settings."""

    def make(self) -> Environment:
        return self.definition.make(self.settings)


def environments() -> dict[str, importlib.metadata.EntryPoint]:
    """All that are installed, by name; this package's own take precedence."""
    return {each.name: each for each in importlib.metadata.entry_points(group=GROUP)} | _OWN


def prepare(name: str, config: EnvSettings) -> Prepared:
    """The environment that a job or a request names. Raises :class:`EnvironmentRefused`."""
    return _prepare(name, config.model_dump_json())


@functools.lru_cache(maxsize=64)
def _prepare(name: str, config: str) -> Prepared:
    definition = _definition(name)
    given = EnvSettings.model_validate_json(config)
    shared = {
        field: value
        for field, value in given
        if field in EnvSettings.model_fields
        and (field in definition.settings.model_fields or value != getattr(EnvSettings(), field))
    }
    try:
        settings = definition.settings.model_validate({**shared, **given.own})
        return Prepared(name, definition, settings, definition.describe(settings), f"{name} {config}")
    except ValidationError as error:
        raise EnvironmentRefused(list(problems(error, definition.settings, "envConfig"))) from None
    except SettingsError as error:
        path = f"envConfig.{error.field}" if error.field else "envConfig"
        raise EnvironmentRefused([Problem(path, error.message)], isinstance(error, PackageMissing)) from None


@functools.cache
def _definition(name: str) -> Definition[Any]:
    known = environments()
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
        problem = Problem("envName", f"no environment {name!r} is installed here; {hint}")
        raise EnvironmentRefused([problem], missing=True)
    try:
        found = known[name].load()
    except Exception as error:  # a package of the user's: whatever its import raises
        reason = f"{type(error).__name__}: {error}"
        raise EnvironmentRefused([Problem("envName", f"{known[name].value} cannot be imported: {reason}")]) from error
    if not isinstance(found, Definition):
        fix = "name a visionrl_taskapp.envs.protocol.Definition"
        raise EnvironmentRefused([Problem("envName", f"{known[name].value} is a {type(found).__name__}; {fix}")])
    return found
