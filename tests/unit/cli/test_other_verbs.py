"""init, replay, doctor, task-app and completion."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.api_server import api_server
from visionrl.jobfile import parse_job
from visionrl_cli import main
from visionrl_cli.commands.init import job_file
from visionrl_cli.health import checks
from visionrl_cli.program import COMMANDS
from visionrl_core.crd import crd


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


# --- init


@pytest.mark.parametrize("gpus", [None, 2, 8])
def test_the_first_job_file_is_valid_and_without_warnings(gpus: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", str(gpus)] if gpus else []
    assert main(["init", "--out", "job.yaml", *words]) == 0
    assert main(["validate", "job.yaml"]) == 0
    assert "warning" not in capsys.readouterr().err
    spec = parse_job(job_file("x", None, gpus)).spec
    assert (spec.inference.gpu.count if spec.inference.gpu else 0) == (gpus or 1) - 1


def test_a_file_that_exists_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_text("mine")
    assert main(["init", "--out", "job.yaml"]) == 1
    assert capsys.readouterr().err == "job.yaml: File exists\n"
    assert Path("job.yaml").read_text() == "mine"


def test_a_name_that_kubernetes_refuses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--name", "Not_A_Name"]) == 1
    assert "visionrl: --name: must be 1 to 45 of a-z, 0-9 and -" in capsys.readouterr().err


# --- replay


def put_recording(iteration: int, content: str | None = None) -> None:
    """Three frames of different colours."""
    turns = []
    for colour in ("green", "red", "blue"):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(buffer, "WEBP")
        image = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        told = {"text": "", "actions": ["do"], "events": ["collect_wood"], "reward": 1.0, "valid": True}
        turns.append({"image": image, **told})
    recorded = json.dumps({"iteration": iteration, "policy": "p", "seed": 7, "score": 1.0, "turns": turns})
    folder = Path("runs/demo/films")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{iteration:06d}.json").write_text(recorded if content is None else content)


@pytest.mark.parametrize(
    ("words", "name"), [([], "demo-2.gif"), (["--iteration", "0"], "demo-0.gif"), (["--out", "x.webp"], "x.webp")]
)
def test_a_recording_becomes_a_moving_picture(words: list[str], name: str) -> None:
    put_recording(0)
    put_recording(2)
    assert main(["replay", "runs/demo", *words]) == 0
    with Image.open(name) as picture:
        assert (picture.width, getattr(picture, "n_frames", 1)) == (320, 3)
        assert picture.height > picture.width  # what was done is below the frame


def test_a_recording_becomes_a_video(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import av

    put_recording(0)
    assert main(["replay", "runs/demo", "--out", "x.mp4", "--seconds", "0.5"]) == 0
    with av.open("x.mp4") as video:
        stream = video.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert (stream.codec_context.name, video.duration) == ("h264", 1.5 * av.time_base)
    assert {(frame.shape[1] % 2, frame.shape[0] % 2) for frame in frames} == {(0, 0)}
    assert [int(frame[160, 160].argmax()) for frame in frames] == [1, 0, 2]  # green, red, blue
    assert main(["replay", "runs/demo", "--out", "none/x.mp4"]) == 1
    assert capsys.readouterr().err == "none/x.mp4: No such file or directory\n"
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["replay", "runs/demo", "--out", "x.mp4"]) == 1
    assert 'pip install "visionrl[video]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs/none"], "runs/none: no recorded episode in runs/none/films"),
        (["runs/demo", "--iteration", "9"], "no recording of iteration 9; there are 1"),
        (["runs/demo", "--out", "x.avi"], "x.avi: its name must end with .gif, .webp or .mp4"),
        (["runs/demo", "--out", "none/x.gif"], "none/x.gif: No such file or directory"),
    ],
)
def test_what_cannot_be_shown_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_recording(1)
    put_recording(2, "damaged")
    assert main(["replay", *words]) == 1
    assert told in capsys.readouterr().err


# --- doctor


def test_doctor_looks_at_this_machine_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "none")
    monkeypatch.setattr(checks, "torch", lambda: checks.Check("torch", "ok", "as it is"))
    assert main(["doctor", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert {"Python", "torch", "memory", "disk for runs", "ports", "cluster"} <= found.keys()
    assert found["cluster"]["state"] == "warning"
    assert "not needed for jobs on this machine" in found["cluster"]["fix"]


def test_doctor_looks_at_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api_server(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        found = {check.name: check for check in checks.cluster("test", None)}
    assert "VisionRLJob" in found


def test_a_definition_of_another_version_is_told() -> None:
    assert checks.definition(crd()).state == "ok"
    assert checks.definition(crd(cel=False)).state == "ok"
    older = json.loads(json.dumps(crd()))
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["queueName"]
    found = checks.definition(older)
    assert (found.state, "queueName" in found.text) == ("warning", True)
    assert checks.definition({"spec": 3}).state == "missing"


def test_gpu_nodes_are_counted() -> None:
    def node(name: str, gpus: str | None) -> dict[str, Any]:
        return {"metadata": {"name": name}, "status": {"allocatable": {"nvidia.com/gpu": gpus} if gpus else {}}}

    assert checks.nodes([node("a", "8"), node("b", None)]).text == "a 8"
    assert checks.nodes([node("b", None)]).state == "warning"


# --- task-app


@pytest.mark.parametrize("port", ["999999", "0", "-1", "x", "9" * 5000])
def test_a_port_is_a_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["task-app", "serve", "--port", port])
    assert ended.value.code == 2
    assert "argument --port: " in capsys.readouterr().err


def test_a_task_app_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "k")
    monkeypatch.delenv("TASK_APP_URL", raising=False)
    for action in ("info", "check", "validate"):
        assert main(["task-app", action]) == 1
        assert capsys.readouterr().err.startswith("visionrl: name the task app: ")
        assert main(["task-app", action, "crafter"]) == 1  # the reference names its apps
        assert "'crafter' is no address" in capsys.readouterr().err
    for url in ("http://127.0.0.1:1", "nonsense", "http://[", ""):
        assert main(["task-app", "info", url]) == 1
        assert capsys.readouterr().err.startswith("visionrl: ")


def test_a_task_app_on_its_own_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.yaml").write_text(job_file("demo", None, None))
    with api_server(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        assert main(["task-app", "deploy", "job.yaml", "--timeout", "0"]) == 0
        assert capsys.readouterr().out == "http://demo-taskapp.default.svc:8000\n"
        made = {kind: server.objects.of(kind) for kind in ("secrets", "configmaps", "services", "deployments")}
        for (body,) in made.values():
            assert "ownerReferences" not in body["metadata"]
            assert body["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "visionrl"
        key = made["secrets"][0]["data"]
        assert main(["task-app", "deploy", "job.yaml", "--timeout", "0"]) == 0
        assert server.objects.of("secrets")[0]["data"] == key  # it is in use
        assert main(["task-app", "deploy", "job.yaml", "--timeout", "0.01"]) == 1
        assert "demo-taskapp is not ready after 0.01 s" in capsys.readouterr().err


# --- completion


def test_bash_completes_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
