"""``python -m visionrl_inference`` up to the moment that vLLM takes over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.inference import InferenceServer, tiny_job


def run(server: InferenceServer, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run to its end; ``changes`` replace environment variables, None unsets."""
    environment = server.environment() | {name: value for name, value in changes.items() if value is not None}
    for name in (name for name, value in changes.items() if value is None):
        del environment[name]
    return subprocess.run(
        [sys.executable, "-m", "visionrl_inference", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def server(tmp_path: Path) -> InferenceServer:
    return InferenceServer(tiny_job(), tmp_path, "http://127.0.0.1:1")


def test_print_shows_what_would_run_and_never_the_key(server: InferenceServer) -> None:
    result = run(server, "--print")
    assert result.returncode == 0, result.stderr
    assert "--served-model-name base" in result.stdout
    assert "VLLM_PLUGINS=visionrl_adapters,visionrl_cpu_lora" in result.stdout
    assert (server.folder / "key").read_text() not in result.stdout
    assert not server.cache.exists()


def test_help_teaches_the_environment(server: InferenceServer) -> None:
    result = run(server, "--help")
    for name in ("VISIONRL_JOB", "VISIONRL_KEY_FILE", "VISIONRL_TRAINER_URL", "VISIONRL_CACHE_DIR", "VISIONRL_PORT"):
        assert name in result.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"VISIONRL_JOB": None}, "VISIONRL_JOB is not set"),
        ({"VISIONRL_JOB": "/no/such/file"}, "VISIONRL_JOB: "),
        ({"VISIONRL_KEY_FILE": "/dev/null"}, "VISIONRL_KEY_FILE: /dev/null is empty; delete it and"),
        ({"VISIONRL_TRAINER_URL": ""}, "VISIONRL_TRAINER_URL is not set"),
        ({"VISIONRL_PORT": "http"}, "VISIONRL_PORT: 'http' is not a port"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_line_and_exit_code_2(
    server: InferenceServer, changes: dict[str, str | None], message: str
) -> None:
    result = run(server, **changes)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_path_that_does_not_exist_is_exit_code_2(tmp_path: Path) -> None:
    job = tiny_job(model={"base": "/no/such/model", "dtype": "float32"})
    result = run(InferenceServer(job, tmp_path, "http://127.0.0.1:1"))
    assert result.returncode == 2
    assert result.stderr == "visionrl_inference: spec.model.base: no directory /no/such/model on this machine\n"


def test_an_argument_that_the_job_decides_is_exit_code_2_before_anything_is_fetched(tmp_path: Path) -> None:
    server = InferenceServer(tiny_job({"extraArgs": ["--api-key", "x"]}), tmp_path, "http://127.0.0.1:1")
    result = run(server)
    assert result.returncode == 2
    assert "spec.inference.vllm.extraArgs[0]: '--api-key' is refused" in result.stderr
    assert not server.cache.exists()


def test_a_job_file_with_a_wrong_value_names_the_field(server: InferenceServer) -> None:
    path = server.folder / "job.json"
    path.write_text(path.read_text().replace('"float32"', '"float8"'))
    result = run(server)
    assert result.returncode == 2
    assert f"VISIONRL_JOB: {path}: spec.model.dtype: " in result.stderr
