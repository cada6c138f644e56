"""How the local executor interprets a job: paths, addresses, devices, and the text for people."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.jobs import job
from visionrl.job import Component
from visionrl.status import (
    EvaluationProgress,
    JobStatus,
    PolicyVersions,
    Progress,
    Score,
)
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.common import Owner
from visionrl_local.container import Launch, launch
from visionrl_local.folder import LocalFolder, tail
from visionrl_local.run import left_to_a_cluster
from visionrl_local.summary import summary_rows, verdict
from visionrl_local.text import progress_line

PORTS: dict[Component, int] = {"taskApp": 9001, "inference": 9002, "trainer": 9003}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
START = "2026-01-01T00:00:00Z"

# --- containers


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Component, Launch]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("HOME", "/home/someone")
    children = all_manifests(job(), 0, Owner("demo", "default", "local"), "k")
    templates = [child["spec"]["template"] for child in children if child["kind"] in ("Deployment", "Job")]
    folder = LocalFolder(tmp_path / "runs" / "demo")
    folder.root.mkdir(parents=True)
    found = [launch(template, "demo", folder, PORTS, {"trainer": "1"}) for template in templates]
    return {each.component: each for each in found}


def test_what_this_machine_leaves_to_a_cluster_is_said() -> None:
    assert left_to_a_cluster(job()) == []
    [note] = left_to_a_cluster(job({"storage.export": {"adapter": "s3://models/crafter"}}))
    assert "visionrl fetch demo" in note


def test_a_variable_of_a_secret_is_the_users_own_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    source = {"secretKeyRef": {"name": "hub", "key": "token"}}
    spec = job({"overrides.trainer": {"env": [{"name": "HF_TOKEN", "valueFrom": source}]}})
    children = all_manifests(spec, 0, Owner("demo", "default", "local"), "k")
    [trainer] = [child["spec"]["template"] for child in children if child["kind"] == "Job"]
    assert launch(trainer, "demo", LocalFolder(tmp_path), PORTS, {}).env["HF_TOKEN"] == "hf_of_the_user"


def test_services_become_loopback_ports(launches: dict[Component, Launch]) -> None:
    env = launches["trainer"].env
    assert env["VISIONRL_TASKAPP_URL"] == "http://127.0.0.1:9001"
    assert env["VISIONRL_INFERENCE_URL"] == "http://127.0.0.1:9002"
    assert (env["VISIONRL_HOST"], env["VISIONRL_PORT"]) == ("127.0.0.1", "9003")
    assert launches["inference"].env["VISIONRL_TRAINER_URL"] == "http://127.0.0.1:9003"
    assert env["NO_PROXY"] == "example.org,127.0.0.1,localhost"


def test_mount_paths_become_folders(launches: dict[Component, Launch], tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "demo")
    trainer, task_app = launches["trainer"].env, launches["taskApp"].env
    assert trainer["VISIONRL_JOB"] == f"{run}/job/job.json"
    assert trainer["VISIONRL_KEY_FILE"] == f"{run}/secret/api-key"
    assert trainer["VISIONRL_RUN_DIR"] == task_app["VISIONRL_TRACE_DIR"] == run
    assert trainer["VISIONRL_CACHE_DIR"] == str(tmp_path / "cache" / "visionrl")
    assert task_app["NUMBA_CACHE_DIR"] == str(tmp_path / "cache" / "visionrl" / "numba")
    assert trainer["HOME"] == "/home/someone"


def test_commands_run_with_this_python(launches: dict[Component, Launch]) -> None:
    assert launches["inference"].argv == [sys.executable, "-m", "visionrl_inference"]


def test_components_see_only_their_own_gpus(launches: dict[Component, Launch]) -> None:
    assert launches["trainer"].env["CUDA_VISIBLE_DEVICES"] == "1"
    assert launches["taskApp"].env["CUDA_VISIBLE_DEVICES"] == ""


# --- files


def test_the_tail_is_that_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log, 3) == []
    log.write_bytes(b"x" * 50_000 + b"\n\nlast but one \n\xff\n")
    assert tail(log, 2) == ["last but one", "\ufffd"]


# --- words


def test_progress_in_one_line() -> None:
    before = Score(mean=1.94, low=1.8, high=2.1, episodes=96)
    latest = Score(mean=2.61, low=2.4, high=2.83, episodes=96)
    status = JobStatus(
        progress=Progress(
            iteration=3,
            total=10,
            reward=2.314,
            episodes_per_minute=84.2,
            evaluation=EvaluationProgress(before=before, latest=latest, latest_iteration=3),
        ),
        policy=PolicyVersions(serving="demo-v000003"),
    )
    assert progress_line(status) == (
        "iteration 3/10 · reward 2.31 · 84 episodes/min · evaluation 1.94 → 2.61 [2.40, 2.83] · serving demo-v000003"
    )
    assert progress_line(JobStatus()) == ""


def test_progress_shows_how_far_an_evaluation_is() -> None:
    progress = Progress(iteration=3, total=10, evaluation=EvaluationProgress(played=12, seeds=64))
    assert progress_line(JobStatus(phase="Running", progress=progress)) == "iteration 3/10 · evaluating 12/64"
    for phase in ("Suspended", "Restarting", "Failed"):
        assert progress_line(JobStatus(phase=phase, progress=progress)) == "iteration 3/10"


def test_the_summary_shows_what_it_holds() -> None:
    score = {"mean": 1.0, "low": 0.5, "high": 1.5, "episodes": 8, "returns": [1.0]}
    rows = dict(summary_rows({"iterations": 3, "episodes": 1200, "reward": [1.0, 2.0], "evaluation": {"after": score}}))
    assert rows == {
        "iterations": "3",
        "training episodes": "1,200",
        "reward, first and last iteration": "1.00 → 2.00",
        "evaluation after": "1.00 [0.50, 1.50] on 8 seeds",
    }
    assert summary_rows({}) == []


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.1, 1.2, "better on the held-out"),
        (-1.2, -0.1, "worse on the held-out"),
        (-0.08, 1.25, "-0.08 to +1.25, holds 0"),
    ],
)
def test_the_summary_says_what_the_gain_shows(low: float, high: float, says: str) -> None:
    assert says in verdict(Score(mean=(low + high) / 2, low=low, high=high, episodes=96))
