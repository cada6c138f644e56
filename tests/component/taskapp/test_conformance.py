"""The conformance test of the rollout contract: passed by our server and by one of the standard library alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.component.taskapp.test_environments import RED_BALL, job_file
from tests.support.taskapp import KEY, taskapp, taskapp_command
from visionrl.conformance import CHECKS, check
from visionrl_cli import main

SERVER = Path(__file__).parents[3] / "examples" / "own-server" / "server.py"


def test_our_server_speaks_the_contract(tmp_path: Path) -> None:
    config = {"image_size": 96, **RED_BALL}
    del config["imageSize"]
    with taskapp(tmp_path, VISIONRL_JOB=job_file(tmp_path, "gymnasium", RED_BALL)) as app:
        outcomes = list(check(app.url, KEY, config))
    assert [outcome for outcome in outcomes if outcome.problem] == []
    assert len(outcomes) == 1 + len(CHECKS)


def test_a_server_of_the_standard_library_speaks_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with taskapp_command([sys.executable, str(SERVER)], tmp_path, {}) as app:
        code = main(["task-app", "validate", app.url, "--key-file", str(tmp_path / "key")])
        assert (code, capsys.readouterr().out.count("\nok")) == (0, len(CHECKS))
        (tmp_path / "wrong").write_text("no")
        assert main(["task-app", "check", app.url, "--key-file", str(tmp_path / "wrong")]) == 1


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "ids": (lambda text: text.replace('choice.get("token_ids")', "[1]"), "decisions[].token_ids are not the model"),
    "hash": (lambda text: text.replace('x3:"', 'x4:"'), "a PNG's pixels do not have the hash that names it"),
    "runs": (lambda text: text.replace("if known:", "if False:"), "was played again"),
    "key": (lambda text: text.replace("return bool(KEY) and", "return True or"), "without a valid key; 401"),
    "seed": (
        lambda text: text.replace("seed, self.size, self.turn = seed", "seed, self.size, self.turn = id(self)"),
        "differ for one seed",
    ),
    "prose": (
        lambda text: text.replace('"valid": error is None', '"valid": True'),
        "decisions[].valid is true for prose",
    ),
    "field": (lambda text: text.replace('"state_hash": state,', ""), "decisions[0].state_hash: required"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_departure_is_found_and_named(tmp_path: Path, fault: str) -> None:
    change, message = BROKEN[fault]
    server = tmp_path / "server.py"
    server.write_text(change(SERVER.read_text()))
    assert server.read_text() != SERVER.read_text()
    with taskapp_command([sys.executable, str(server)], tmp_path, {}) as app:
        assert message in " ".join(outcome.problem for outcome in check(app.url, KEY))


def test_an_address_without_a_server_is_one_line() -> None:
    [outcome] = check("http://127.0.0.1:9", KEY)
    assert outcome.problem.startswith("http://127.0.0.1:9: ")
