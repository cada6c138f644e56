"""``visionrl fetch`` on a run folder of this machine, and with a kubectl that pretends to be a cluster."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.test_export import run_folder
from visionrl.adapters import Version, verified_manifest
from visionrl_cli import main
from visionrl_core.manifests.pods import RUN_DIR

KUBECONFIG = {
    "current-context": "test",
    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me", "namespace": "default"}}],
    "clusters": [{"name": "test", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "me", "user": {}}],
}

# kubectl as far as it is used here: objects of a file, and containers whose run folder is a folder of this machine.
KUBECTL = f"""#!{sys.executable}
import json, pathlib, subprocess, sys
home = pathlib.Path(__file__).parent
objects = json.loads((home / "objects.json").read_text())
words = [word for word in sys.argv[1:] if not word.startswith(("--context", "--namespace"))]
with (home / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + chr(10))
match words:
    case ["get", kind, "--selector", _, *_]:
        print(json.dumps({{"items": objects.get(kind, [])}}))
    case ["get", kind, name, *_]:
        found = [each for each in objects.get(kind, []) if each["metadata"]["name"] == name]
        print(json.dumps(found[0]) if found else "")
    case ["create", *_]:
        (home / "pod.json").write_text(sys.stdin.read())
    case ["wait", *_]:
        if objects.get("stuck"):
            sys.exit("error: timed out waiting for the condition")
    case ["exec", pod, "--container", container, "--", *command]:
        command[-1] = command[-1].replace({RUN_DIR!r}, str(home / "volume"))
        sys.exit(subprocess.run(command).returncode)
    case ["delete", "pod", *_]:
        (home / "pod.json").rename(home / "deleted.json")
    case _:
        sys.exit(f"error: {{words}}")
"""


@dataclass
class FakeCluster:
    """``objects`` by kind; ``volume`` is what pods see as the run folder."""

    home: Path

    @property
    def volume(self) -> Path:
        return self.home / "volume"

    def has(self, **objects: Any) -> None:
        found = {"visionrljobs.visionrl.dev" if kind == "jobs" else kind: each for kind, each in objects.items()}
        (self.home / "objects.json").write_text(json.dumps(found))

    @property
    def reader(self) -> dict[str, Any]:
        """The pod that read the claim; it was deleted."""
        found: dict[str, Any] = json.loads((self.home / "deleted.json").read_text())
        return found


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    home = tmp_path / "cluster"
    home.mkdir()
    (home / "kubectl").write_text(KUBECTL)
    (home / "kubectl").chmod(0o755)
    (home / "config").write_text(json.dumps(KUBECONFIG))
    monkeypatch.setenv("KUBECONFIG", str(home / "config"))
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return FakeCluster(home)


def job_object(storage: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "demo", "uid": "uid-1"}, "spec": {"storage": storage or {}}, "status": status}


def claim(name: str, uid: str, created: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    annotations = {"visionrl.dev/job-uid": uid}
    return {"metadata": {"name": name, "annotations": annotations, "creationTimestamp": created}}


def trainer(state: str = "running") -> dict[str, Any]:
    """Its pod, in which a sidecar comes first and runs."""
    statuses = [{"name": "proxy", "state": {"running": {}}}, {"name": "trainer", "state": {state: {}}}]
    return {"metadata": {"name": "demo-trainer-0-x"}, "status": {"containerStatuses": statuses}}


def mounted(pod: dict[str, Any]) -> str:
    found: str = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    return found


def fetch(*words: str) -> int:
    return main(["fetch", "demo", *words], program="kubectl visionrl")


def newest_of(folder: Path) -> Version:
    return run_folder(folder)[-1]


def test_what_a_run_on_this_machine_trained(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    version = newest_of(Path("runs/demo"))
    assert main(["fetch", "demo"]) == 0
    manifest = verified_manifest(Path(version.name))
    assert f"sha256 {manifest.digest}" in capsys.readouterr().out
    assert main(["fetch", "demo"]) == 0, "again: it is there already"
    assert not (cluster.home / "calls").exists()


def test_what_a_running_trainer_has(cluster: FakeCluster) -> None:
    version = newest_of(cluster.volume)
    cluster.has(jobs=[job_object()], pods=[trainer()])
    assert fetch("--output", "best") == 0
    assert version.matches(verified_manifest(Path("best")))
    assert not (cluster.home / "deleted.json").exists(), "no other pod is needed"


@pytest.mark.parametrize("pods", [[], [trainer("terminated")]], ids=["gone", "a sidecar is left"])
def test_what_lies_on_the_claim_of_a_job_that_has_ended(cluster: FakeCluster, pods: list[dict[str, Any]]) -> None:
    version = newest_of(cluster.volume)
    claims = [claim("demo-run-other", "uid-0", "2026-06-01T00:00:00Z"), claim("demo-run-own", "uid-1")]
    cluster.has(jobs=[job_object()], pods=pods, PersistentVolumeClaim=claims)
    assert fetch("--output", "best") == 0
    assert version.matches(verified_manifest(Path("best")))
    assert mounted(cluster.reader) == "demo-run-own"


def test_what_a_deleted_job_left(cluster: FakeCluster) -> None:
    newest_of(cluster.volume)
    claims = [claim("demo-run-new", "uid-2", "2026-02-01T00:00:00Z"), claim("demo-run-old", "uid-1")]
    cluster.has(PersistentVolumeClaim=claims)
    assert fetch() == 0
    assert mounted(cluster.reader) == "demo-run-new"


def test_a_damaged_version_is_passed_over(cluster: FakeCluster) -> None:
    older, newer = run_folder(cluster.volume)
    (cluster.volume / "adapters" / newer.name / "adapter_model.safetensors").write_bytes(b"x" * 10_000)
    cluster.has(jobs=[job_object({"runClaim": "mine"})])
    assert fetch("--output", "best") == 0
    assert older.matches(verified_manifest(Path("best")))


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({}, "there is neither a job demo nor a claim"),
        ({"jobs": [job_object(result={"copies": [{"to": "s3://b/c"}]})]}, "it was copied to s3://b/c"),
        ({"jobs": [job_object({"runClaim": "mine"})], "stuck": True}, "does not start"),
        ({"jobs": [job_object()], "pods": [trainer()]}, "ls: cannot access"),
    ],
)
def test_why_nothing_can_be_had(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], objects: dict[str, Any], words: str
) -> None:
    cluster.has(**objects)
    assert fetch() == 1
    assert words in capsys.readouterr().err
    assert not list(Path().glob("demo-v*"))
    assert not (cluster.home / "pod.json").exists(), "the pod is deleted, whatever happens"


def test_a_folder_that_holds_something_else_is_left_alone(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    newest_of(Path("runs/demo"))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    assert main(["fetch", "demo", "--output", "mine"]) == 1
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
