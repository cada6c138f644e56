"""Every shell command of the documentation is right as far as a parser can tell, and is run: here, by another test, or
by none, which the page then says."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.documented import MARK, PAGES, ROOT, Fence, Line, fences
from tests.support.report_run import film
from visionrl_cli.program import COMMANDS, parser
from visionrl_core.crd import crd
from visionrl_trainer.report import films

SHELL = "sh"
FENCES = [fence for page in PAGES for fence in fences(page)]
BLOCKS = [fence for fence in FENCES if fence.language == SHELL]
LINES = [line for block in BLOCKS for line in block.lines]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()

RUN_HERE = (
    "visionrl init",
    "visionrl validate",
    "visionrl render",
    "visionrl convert",
    "visionrl jobs list",
    "visionrl explain",
    "visionrl completion",
    "kubectl visionrl completion",
    "visionrl jobs get",
    "visionrl replay",
    "python -m recipes.learn --list",
    "mkdir",
    ". activate",
)
"""Run below as they stand, line by line and page by page."""

CI = "../.ci/run"
OWN = "component/taskapp/test_own_environment.py::test_the_example_is_installed_and_played"
RUNS = "component/test_run.py::test_the_run_completes_and_says_what_it_did"
TRAINS = "e2e/test_training.py::test_a_job_trains_through_everything_that_happens_to_it"
RELEASE = "cluster/test_chart_install.py::test_a_release_is_installed_changed_rolled_back_and_removed"
SUBMITS = "unit/cli/test_train.py::test_the_job_is_created_with_the_values_of_the_flags"
PUBLISHED = "integration/cli/test_cli_train_rl_vision.py::test_cli_train_rl_vision_qwen3vl4b"
RECORDS = "unit/recipes/test_learn.py::test_a_report_can_be_made_again_from_its_own_records"
CONTRACT = "component/taskapp/test_conformance.py::test_a_server_of_the_standard_library_speaks_it"
RUN_BY = {
    "make setup": CI,
    "make test": CI,
    "make demo": RUNS,
    "visionrl run": RUNS,
    "visionrl run examples/own-environment/job.yaml": OWN,
    "visionrl train --type rl --context": SUBMITS,
    "visionrl train --type rl --model tiny": PUBLISHED,
    "visionrl train --data": "component/test_train.py::test_a_model_is_trained_that_a_job_takes_as_its_base",
    "visionrl eval --policy": "component/test_eval.py::test_the_teacher_plays_on_a_task_app_that_is_started_for_it",
    "visionrl eval --inference-url": "component/test_eval.py::test_a_model_behind_any_server_plays",
    "visionrl eval --run": "component/test_eval_run.py::test_the_newest_checkpoint_plays_by_its_name_on_the_runs_base",
    "visionrl eval --model": "component/test_train_served.py::test_what_was_trained_is_scored_by_its_folder",
    "visionrl fetch": "unit/cli/test_fetch.py::test_what_a_run_on_this_machine_trained",
    "kubectl visionrl fetch": "unit/cli/test_fetch.py::test_what_a_running_trainer_has",
    "kubectl visionrl explain": "unit/cli/test_explain.py::test_what_is_in_the_way_is_said_with_what_to_do",
    "kubectl visionrl jobs logs": "unit/cli/test_jobs.py::test_logs_are_those_of_the_newest_pod",
    "kubectl visionrl jobs suspend": "unit/cli/test_jobs.py::test_suspend_cancel_and_resume_change_the_object",
    "visionrl filter": "component/test_eval.py::test_traces_of_both_policies_become_data_that_trains",
    "visionrl filter --format trl": "unit/data/test_trl.py::test_the_rows_are_the_lines_in_columns",
    "visionrl task-app check": CONTRACT,
    "pip install --no-deps": OWN,
    "python -m recipes.learn --records --report": RECORDS,
    "helm install": RELEASE,
    "helm uninstall": RELEASE,
    "kubectl apply -f configs/crafter-tiny.yaml": TRAINS,
    "kubectl get vrl": TRAINS,
    "kubectl logs": TRAINS,
    "kubectl delete vrl": "e2e/test_lifecycle.py::test_a_job_deleted_in_any_phase_leaves_nothing",
}
"""By words that a command has, in this order: the test below ``tests`` that does the same, perhaps with less."""


def has(words: Sequence[str], pattern: str) -> bool:
    """Whether the pattern's words are among these, in this order, the first at the beginning.

    >>> has(["visionrl", "eval", "--run", "runs/a", "--base"], "visionrl eval --base")
    True
    """
    rest = iter(words)
    return words[0] == pattern.split()[0] and all(word in rest for word in pattern.split())


def is_run(words: Sequence[str]) -> bool:
    return any(has(words, pattern) for pattern in RUN_HERE)


def is_covered(words: Sequence[str]) -> bool:
    return any(has(words, pattern) for pattern in RUN_BY)


# --- each command is right


def check_visionrl(words: Sequence[str]) -> None:
    program = "kubectl visionrl" if words[0] == "kubectl" else "visionrl"
    arguments = list(words[len(program.split()) :])
    assert arguments[0] in COMMANDS
    parser(arguments[:1], program).parse_args(arguments)


def check_make(words: Sequence[str]) -> None:
    for word in words[1:]:
        name, variable, _ = word.partition("=")
        assert re.search(rf"\b{name}\b" if variable else rf"^{name}:", MAKEFILE, re.MULTILINE), word


def check_python(words: Sequence[str]) -> None:
    assert words[1] == "-m"
    assert importlib.util.find_spec(words[2]), words[2]


def check_pip(words: Sequence[str]) -> None:
    """Versions are those of the lock, extras are the project's."""
    lock = (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
    for word in words:
        assert "==" not in word or word in lock or word.replace("==", "-cpu==") in lock  # vllm's build for CPUs
        for extra in re.findall(r"\[(.*)\]", word):
            assert set(extra.split(",")) <= PROJECT["optional-dependencies"].keys()


def check_helm(words: Sequence[str]) -> None:
    assert words[1] in ("install", "uninstall")
    values = YAML(typ="safe", pure=True).load(ROOT / "charts" / "visionrl" / "values.yaml")
    for name in (word.partition("=")[0] for word in words if re.fullmatch(r"[\w.]+=.*", word)):
        inner = values
        for key in name.split("."):
            assert key in inner, name
            inner = inner[key]


def check_kubectl(words: Sequence[str]) -> None:
    if words[1] == "visionrl":
        return check_visionrl(words)
    names = crd()["spec"]["names"]
    resources = {*names["shortNames"], names["plural"], "node", "job"}
    flags = argparse.ArgumentParser(exit_on_error=False)
    flags.add_argument("verb", choices=("apply", "get", "logs", "describe", "delete", "label", "patch"))
    flags.add_argument("names", nargs="*")
    for flag in ("-f", "-p", "--type", "--subresource"):
        flags.add_argument(flag)
    for flag in ("--watch", "--follow"):
        flags.add_argument(flag, action="store_true")
    given = flags.parse_intermixed_args(words[1:])
    assert given.verb == "apply" or given.names[0].partition("/")[0] in resources
    return None


def check_docker(words: Sequence[str]) -> None:
    assert words[1] == "push" or (ROOT / words[-1] / "Dockerfile").exists()


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "visionrl": check_visionrl,
    "make": check_make,
    "python": check_python,
    "pip": check_pip,
    "helm": check_helm,
    "kubectl": check_kubectl,
    "docker": check_docker,
    "pre-commit": lambda words: None,
    "mkdir": lambda words: None,
    "apt-get": lambda words: None,
    "python3": lambda words: None,  # -m venv
    ".": lambda words: None,
}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_is_right(line: Line) -> None:
    for words in line.commands:
        CHECKS[words[0]](words)
        for word in words:
            if word.partition("/")[0] in ("configs", "charts", "crds", "docs", "examples", "images", "requirements"):
                assert (ROOT / word).exists() or "make" in words, word


SPAN = re.compile(r"(?<!`)`((?:kubectl )?visionrl [a-z][^`]*)`(?!`)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_flags_within_sentences_exist(page: Path) -> None:
    """There they stand with ``NAME``, ``…`` and the like, so that no parser takes them whole."""
    for text in SPAN.findall(page.read_text()):
        verb, *words = re.sub(r"^(kubectl )?visionrl ", "", text.replace("\n", " ")).split()
        for name in re.split(r"[|·]", verb):
            assert name in COMMANDS, text
            known = subparser(name, words)
            assert [word for word in words if re.fullmatch(r"--[a-z-]+", word) and word not in known] == [], text


def subparser(verb: str, words: Sequence[str]) -> set[str]:
    """The flags of a verb, and of its action where the words name one."""
    found = inner(parser([verb]))[verb]
    actions = inner(found)
    return {flag for each in (found, *(actions[word] for word in words if word in actions)) for flag in flags_of(each)}


def inner(found: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in found._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def flags_of(found: argparse.ArgumentParser) -> set[str]:
    return {flag for action in found._actions for flag in action.option_strings}


def test_commands_are_in_fences_that_say_so() -> None:
    starts = tuple(f"{program} " for program in CHECKS)
    silent = [fence for fence in FENCES if fence.language == "" and fence.text.startswith(starts)]
    assert [f"{fence.page.name}:{fence.number}" for fence in silent] == []
    assert len(LINES) > 60


# --- each command is run, or the page says that it is not


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page.name}:{block.number}")
def test_a_command_is_run_or_its_page_says_that_it_is_not(block: Fence) -> None:
    left = [words for line in block.lines for words in line.commands if not is_run(words) and not is_covered(words)]
    assert [" ".join(words) for words in left if not block.is_marked(words)] == [], f"'{MARK} …' below the fence"
    assert block.mark is None or left, "all of it is run"
    idle = [each for each in block.marked if not any(words[: len(each)] == each for words in left)]
    assert idle == [], "marked, and run or not there"


def test_what_runs_a_command_is_there() -> None:
    for test in RUN_BY.values():
        file, _, name = test.partition("::")
        assert not name or re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test
    used = [words for line in LINES for words in line.commands]
    patterns = [*RUN_HERE, *RUN_BY]
    assert [pattern for pattern in patterns if not any(has(words, pattern) for words in used)] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands: beside the project's files, with a file of the reference system, after a run."""
    for name in ("configs", "charts", "examples", "docs", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "kubectl").write_text('#!/bin/sh\nshift\nexec kubectl-visionrl "$@"\n')  # as kubectl finds its plugins
    (tmp_path / "kubectl").chmod(0o755)
    shutil.copy(ROOT / "tests/unit/reference/testdata/rl_vision.toml", tmp_path / "rl.toml")
    for name in ("crafter", "crafter-tiny"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        films.save(film(0, turns=3, score=1.0), run / "films")
        (run / "status.json").write_text('{"phase": "Failed", "reason": "trainer: exit code 1"}')
    return tmp_path


def test_what_is_cheap_is_run_as_it_stands(folder: Path) -> None:
    path = f"{folder}:{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(folder), "PATH": path, "PYTHONPATH": str(ROOT)}
    done = 0
    for line in LINES:
        if all(is_run(words) for words in line.commands):
            script = f"set -o pipefail; {line.text}"
            run = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
            assert run.returncode == 0, f"{line}\n{run.stderr}"
            done += 1
    assert done > 8
