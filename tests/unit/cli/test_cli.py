"""The command line as people and scripts see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from visionrl_cli import main

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
GOOD = Path(__file__).parents[3] / "configs" / "crafter-tiny.yaml"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD.read_text().replace("iterations:", "iteratons:"))
    return file


@pytest.mark.parametrize("words", [[], ["run"], ["train"], ["eval"], ["filter"], ["validate"], ["render"]])
def test_help_shows_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert "examples:\n  visionrl " in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["fly"], ["validate"], ["run", "--port", "70000", "job.yaml"]])
def test_wrong_words_end_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


# --- validate


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_shipped_configs_are_valid(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(file)]) == 0
    found = capsys.readouterr()
    assert found.out == f"{file}: ok\n"
    assert found.err == ""


def test_validate_tells_file_line_field_and_fix(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(GOOD), str(broken)]) == 1
    found = capsys.readouterr()
    assert f"{GOOD}: ok" in found.out
    line = 1 + next(n for n, text in enumerate(broken.read_text().splitlines()) if "iteratons" in text)
    assert f"{broken}:{line}: spec.training.iteratons: unknown key; did you mean iterations?" in found.err


def test_validate_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD.read_text().replace("temperature: 1.0", "topP: 0.9"))
    assert main(["validate", str(file)]) == 0
    assert "spec.rollout.policyConfig.topP: warning: applies to evaluation only" in capsys.readouterr().err


def test_validate_for_scripts(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main(["validate", "--json", str(GOOD), str(broken), str(tmp_path / "none"), str(binary)]) == 1
    good, bad, missing, no_text = json.loads(capsys.readouterr().out)
    assert good == {"file": str(GOOD), "ok": True, "errors": [], "warnings": []}
    assert "spec.training.iteratons" in [problem["path"] for problem in bad["errors"]]
    assert all(problem["line"] for problem in bad["errors"])
    assert missing["errors"][0]["message"] == "No such file or directory"
    assert no_text["errors"][0]["message"] == "is not UTF-8 text"


# --- render


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_render_prints_every_object_and_no_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--namespace", "team", str(file)]) == 0
    objects = list(YAML(typ="safe", pure=True).load_all(capsys.readouterr().out))
    kinds = [each["kind"] for each in objects]
    assert {"Secret", "ConfigMap", "NetworkPolicy", "Service", "Deployment", "Job"} <= set(kinds)
    assert {each["metadata"]["namespace"] for each in objects} == {"team"}
    assert objects[kinds.index("Secret")]["data"] == {"api-key": "bWFza2Vk"}


def test_render_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--json", str(GOOD)]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "List"


def test_render_refuses_a_broken_file(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(broken)]) == 1
    assert "did you mean iterations?" in capsys.readouterr().err
    assert main(["render", str(tmp_path / "none")]) == 1
    assert "none: No such file or directory" in capsys.readouterr().err


# --- run


def test_run_refuses_a_broken_file(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--runs", str(tmp_path / "runs"), str(broken)]) == 1
    assert "did you mean iterations?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_library_does_not_import_the_operator() -> None:
    code = (
        "import sys, visionrl_cli, visionrl.jobfile; print(any('operator_' in m or 'kopf' in m for m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code.replace("operator_", "visionrl_operator")], capture_output=True)
    assert found.stdout == b"False\n"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "visionrl_local.run", None)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(GOOD)])
    assert ended.value.code == 1
    assert "pip install" in capsys.readouterr().err


def test_output_to_a_closed_pipe_is_no_error() -> None:
    command = (
        f"{sys.executable} -c 'import sys; from visionrl_cli import main; sys.exit(main())' render {GOOD} | head -1"
    )
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.stdout == "---\n"
    assert found.stderr == ""


def test_run_warns_of_what_is_probably_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("visionrl_local.run.run", lambda options: 0)
    file = tmp_path / "job.yaml"
    file.write_text(GOOD.read_text().replace("temperature: 1.0", "temperature: 0.1"))
    assert main(["run", str(file)]) == 0
    assert "spec.rollout.policyConfig.temperature: warning: is low for training" in capsys.readouterr().err
