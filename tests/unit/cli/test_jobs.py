"""The verbs about jobs: against an API server in memory, over HTTP, and on run folders."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import ApiServer, api_server
from tests.support.fake_api import failure
from tests.support.jobs import document
from visionrl.status import (
    Attempt,
    ComponentStatus,
    Condition,
    EvaluationProgress,
    JobStatus,
    PolicyVersions,
    Progress,
    Score,
)
from visionrl_cli import main
from visionrl_core.manifests.pods import RUN_DIR

TIME = "2026-01-01T00:00:00Z"
RUNNING = JobStatus(
    observed_generation=1,
    phase="Running",
    reason="iteration 2",
    conditions=[
        Condition(type="Accepted", status="True", reason="Valid", last_transition_time=TIME, observed_generation=1),
        Condition(type="TrainerRunning", status="True", reason="Training", last_transition_time=TIME),
    ],
    start_time=TIME,
    attempts=[
        Attempt(number=0, started=TIME, ended="2026-01-01T01:00:00Z", cause="trainer: exit code 137 (OOMKilled)"),
        Attempt(number=1, started="2026-01-01T01:01:00Z"),
    ],
    attempt=1,
    components=[
        ComponentStatus(name="taskApp", ready=True, node="node-a"),
        ComponentStatus(name="inference", ready=True, node="node-a"),
        ComponentStatus(name="trainer", ready=True, restarts=1, node="node-b"),
    ],
    progress=Progress(
        iteration=2,
        total=10,
        reward=2.5,
        episodes_per_minute=70.0,
        evaluation=EvaluationProgress(before=Score(mean=1.0, low=0.5, high=1.5, episodes=8)),
    ),
    policy=PolicyVersions(trained="demo-v000002-0a1b2c3d4e5f", serving="demo-v000002-0a1b2c3d4e5f"),
)


def status_of(status: JobStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def put_job(server: ApiServer, status: JobStatus | None = RUNNING, name: str = "demo", **metadata: Any) -> None:
    body = document()
    body["metadata"] |= {"name": name, "namespace": "default", **metadata}
    server.objects.put("visionrljobs", body | ({"status": status_of(status)} if status else {}))


def put_event(server: ApiServer, kind: str, name: str, reason: str, message: str, type_: str = "Warning") -> None:
    body = {
        "metadata": {"name": f"{name}.{reason}", "namespace": "default"},
        "involvedObject": {"kind": kind, "name": name},
        "type": type_,
        "reason": reason,
        "message": message,
        "lastTimestamp": "2026-01-01T00:30:00Z",
    }
    server.objects.put("events", body)


def put_pod(server: ApiServer, component: str, name: str, created: str = TIME) -> None:
    labels = {"visionrl.dev/job": "demo", "visionrl.dev/component": component}
    server.objects.put(
        "pods", {"metadata": {"name": name, "namespace": "default", "labels": labels, "creationTimestamp": created}}
    )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "*")
        monkeypatch.delenv("VISIONRL_CONTEXT", raising=False)
        monkeypatch.chdir(tmp_path)
        yield running


def in_cluster(*words: str) -> int:
    return main(words, program="kubectl visionrl")


# --- in a cluster


def test_the_jobs_of_the_namespace_are_listed(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    put_job(server)
    put_job(server, None, "fresh")
    assert in_cluster("jobs", "list") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "PHASE", "ITER", "REWARD", "EP/MIN", "POLICY", "AGE", "REASON"]
    assert rows[0].split()[:6] == ["demo", "Running", "2/10", "2.50", "70", "demo-v000002-0a1b2c3d4e5f"]
    assert rows[1].split()[:2] == ["fresh", "Pending"]
    assert set(server.tokens) == {"Bearer secret-token"}


def test_scripts_get_json(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    put_job(server, managedFields=[{"manager": "kubectl"}])
    assert in_cluster("jobs", "list", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["metadata"]["name"], found["phase"]) == ("demo", "Running")
    assert found["status"]["progress"]["reward"] == 2.5
    assert "managedFields" not in found["metadata"]
    assert in_cluster("jobs", "metrics", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reward"] == 2.5
    assert in_cluster("jobs", "timeline", "demo", "--json") == 0
    assert {"time": TIME, "text": "created"} in json.loads(capsys.readouterr().out)


def test_all_iterations_come_from_the_trainers_run_folder(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(server)
    assert in_cluster("jobs", "metrics", "demo") == 0
    assert "the last iteration alone, for its run folder cannot be read: demo has no pod" in capsys.readouterr().err
    put_pod(server, "trainer", "demo-trainer-0-abcde")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(
        '#!/bin/sh\n[ "$*" = "--namespace=default exec demo-trainer-0-abcde --container trainer -- '
        f'cat {RUN_DIR}/metrics.jsonl" ] || exit 1\n'
        """printf '{"iteration": 1, "reward": 1.5}\\n{"iteration": 2, "reward": 2.5}\\n{"itera'\n"""
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kubectl.parent}:{os.environ['PATH']}")
    assert in_cluster("jobs", "metrics", "demo", "--json") == 0
    told = capsys.readouterr()
    assert [json.loads(line)["reward"] for line in told.out.splitlines()] == [1.5, 2.5]
    assert told.err == ""
    kubectl.write_text("#!/bin/sh\necho 'Error from server (Forbidden): pods/exec' >&2; exit 1\n")
    assert in_cluster("jobs", "metrics", "demo") == 0
    assert "cannot be read: kubectl exec demo-trainer-0-abcde: Error from server (Forbidden)" in capsys.readouterr().err


def test_get_and_timeline_tell_what_happened(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    put_job(server)
    put_event(server, "VisionRLJob", "demo", "Restarted", "attempt 1 follows")
    put_event(server, "Pod", "demo-trainer-0-abcde", "BackOff", "restarting")
    put_event(server, "Pod", "another-trainer-0-abcde", "BackOff", "not of this job")
    assert in_cluster("jobs", "get", "demo") == 0
    shown = capsys.readouterr().out
    assert "0: 2026-01-01T00:00:00Z to 2026-01-01T01:00:00Z: trainer: exit code 137 (OOMKilled)" in shown
    assert "node-b" in shown
    assert in_cluster("jobs", "timeline", "demo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == sorted(lines)
    assert "2026-01-01T00:30:00Z  Pod/demo-trainer-0-abcde: BackOff: restarting" in lines
    assert "2026-01-01T01:00:00Z  attempt 0 ended: trainer: exit code 137 (OOMKilled)" in lines
    assert not any("not of this job" in line for line in lines)


def test_logs_are_those_of_the_newest_pod(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    put_job(server)
    put_pod(server, "trainer", "demo-trainer-0-old")
    put_pod(server, "trainer", "demo-trainer-1-new", "2026-01-01T01:01:00Z")
    server.logs = {"demo-trainer-0-old": "old\n", "demo-trainer-1-new": "first\nsecond\nthird"}
    assert in_cluster("jobs", "logs", "demo", "--tail", "2") == 0
    assert capsys.readouterr().out == "second\nthird\n"
    assert in_cluster("jobs", "logs", "demo", "--follow", "--previous") == 0
    assert "follow=true&previous=true" in server.requests[-1]
    assert in_cluster("jobs", "logs", "demo", "--component", "inference") == 1
    assert "demo has no pod of inference now; kubectl visionrl explain demo" in capsys.readouterr().err


def test_suspend_cancel_and_resume_change_the_object(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    put_job(server)

    def spec() -> dict[str, Any]:
        return dict(server.objects.get("visionrljobs", "demo")["spec"])

    assert in_cluster("jobs", "suspend", "demo") == 0
    assert spec()["suspend"] is True
    assert in_cluster("jobs", "cancel", "demo") == 0
    assert in_cluster("jobs", "list") == 0
    assert "Cancelled" in capsys.readouterr().out
    assert in_cluster("explain", "demo") == 0
    assert "to do: to continue: kubectl visionrl jobs resume demo -n default" in capsys.readouterr().out
    assert in_cluster("jobs", "resume", "demo") == 0
    assert spec()["suspend"] is False
    assert server.objects.get("visionrljobs", "demo")["metadata"]["annotations"] == {}
    assert [write.split()[0] for write in server.objects.writes] == ["PATCH"] * 3  # nothing was deleted


def test_a_job_that_ended_is_not_cancelled(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Condition(type="Complete", status="True", reason="TrainerSucceeded", last_transition_time=TIME)
    put_job(server, RUNNING.model_copy(update={"conditions": [ended], "phase": "Complete"}))
    assert in_cluster("jobs", "cancel", "demo") == 1
    assert capsys.readouterr().err == "visionrl: demo has ended already\n"
    assert server.objects.writes == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("jobs", "get", "none"), "no job none in namespace default"),
        (("jobs", "suspend", "none"), "no job none in namespace default"),
        (("jobs", "logs", "none"), "no job none in namespace default"),
        (("explain", "none"), "no job none in namespace default"),
        (("jobs", "list", "--context", "other"), "--context other: no cluster can be used"),
    ],
)
def test_what_is_not_there_is_named(
    server: ApiServer, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_cluster(*words) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "the cluster does not know you: no; log in again"),
        (403, "not allowed: no"),
        (404, "the cluster has no VisionRLJobs: helm install visionrl charts/visionrl"),
        (500, "namespace default: no"),
    ],
)
def test_refusals_of_the_api_server_say_what_to_do(
    server: ApiServer, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.objects.fault = lambda method, path: failure(status, message="no")
    assert in_cluster("jobs", "list") == 1
    assert told in capsys.readouterr().err


def test_a_cluster_that_is_away_is_told(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    text = server.kubeconfig.read_text()
    server.kubeconfig.write_text(text[: text.index("http://")] + 'http://127.0.0.1:1"' + text[text.index('"}}]') + 1 :])
    assert in_cluster("jobs", "list") == 1
    assert "cannot reach the cluster at http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "x", "{}", "[", '{"contexts": 3}'])
def test_a_damaged_kubeconfig_is_told(server: ApiServer, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.kubeconfig.write_text(content)
    assert in_cluster("jobs", "list") == 1
    assert "no cluster can be used: " in capsys.readouterr().err


def test_flags_and_variables_say_where(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(server, namespace="default")
    for words in (["--context", "test"], ["--namespace", "default"]):
        assert main(["jobs", "list", *words]) == 0
        assert "demo" in capsys.readouterr().out
    assert in_cluster("jobs", "list", "--local") == 0
    assert capsys.readouterr().err == "no jobs: runs/ on this machine\n"
    monkeypatch.setenv("VISIONRL_CONTEXT", "test")
    assert main(["jobs", "list"]) == 0
    assert "demo" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["jobs", "list", "--local", "--namespace", "x"])
    assert ended.value.code == 2


def test_without_the_operators_packages_they_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "visionrl_cli.places.cluster", None)
    with pytest.raises(SystemExit):
        in_cluster("jobs", "list")
    assert 'pip install "visionrl[operator]"' in capsys.readouterr().err


# --- on this machine


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that was killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISIONRL_CONTEXT", raising=False)
    root = tmp_path / "runs" / "demo"
    (root / "job").mkdir(parents=True)
    (root / "logs").mkdir()
    (root / "job" / "job.json").write_text(json.dumps(document()))
    (root / "status.json").write_text(json.dumps(status_of(RUNNING)))
    (root / ".lock").write_text("1\n")  # its process is gone: nobody holds the lock
    (root / "logs" / "trainer.log").write_text("one\ntwo\nthree\n")
    (root / "metrics.jsonl").write_text('{"iteration": 1, "reward": 1.5}\n{"iteration": 2, "reward": 2.5}\n{"itera')
    (tmp_path / "runs" / "somebody's thesis").mkdir()
    return root


def test_run_folders_are_jobs_too(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:3] == ["demo", "Stopped", "2/10"]
    assert main(["jobs", "logs", "demo", "--tail", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert main(["jobs", "metrics", "demo", "--json"]) == 0
    assert [json.loads(line)["reward"] for line in capsys.readouterr().out.splitlines()] == [1.5, 2.5]
    assert main(["explain", "demo"]) == 0
    assert "to do: visionrl jobs resume demo" in capsys.readouterr().out


@pytest.mark.parametrize("has_run", [True, False])
def test_a_job_that_was_refused_in_the_background_says_why(
    runs: Path, has_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "demo"]) == 0
    told = capsys.readouterr().out
    assert "nothing executes it: stopped with Ctrl-C, or killed\n  to do: visionrl jobs resume demo" in told
    assert main(["jobs", "get", "demo"]) == 0
    assert "components:" not in capsys.readouterr().out, "none runs"
    if not has_run:
        (runs / "status.json").unlink()
    (runs / "logs" / "executor.log").write_text("a note\nvisionrl: the job asks for 2 GPUs, this machine offers 0\n")
    assert main(["explain", "demo"]) == 0
    told = capsys.readouterr().out
    assert "demo: Stopped: the job asks for 2 GPUs, this machine offers 0\n" in told
    assert "in a cluster (train --type rl --context NAME)" in told
    os.utime(runs / "logs" / "executor.log", (0, 0))
    assert main(["explain", "demo"]) == 0
    assert ("2 GPUs" in capsys.readouterr().out) == (not has_run), "of a run before the last one"


def test_cancelling_keeps_every_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path for path in runs.rglob("*") if path.is_file()}
    assert main(["jobs", "cancel", "demo"]) == 0
    assert {path for path in runs.rglob("*") if path.is_file()} == before
    assert main(["jobs", "list"]) == 0
    assert "Cancelled" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none", ".", "..", "a/b", "somebody's thesis"])
def test_only_run_folders_are_jobs(runs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("get", "cancel", "resume", "logs"):
        assert main(["jobs", action, name]) == 1
        assert f"no job {name} in runs/ on this machine; for a job in a cluster: " in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"\xff", b'{"phase": 3}', b'{"conditions": "x"}'])
def test_a_damaged_status_is_no_traceback(runs: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "status.json").write_bytes(content)
    for words in (["list"], ["get", "demo"], ["timeline", "demo"]):
        assert main(["jobs", *words]) == 0
    assert "cannot be read" in capsys.readouterr().out
