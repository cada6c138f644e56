"""``visionrl train``: the job that it starts, and how it is watched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import ApiServer, api_server
from tests.unit.cli.test_jobs import RUNNING, TIME, in_cluster, put_job, status_of
from visionrl.status import Condition, JobStatus
from visionrl_cli import main
from visionrl_cli.places.chart import bars
from visionrl_cli.places.place import JobRecord, PlaceError
from visionrl_cli.places.watch import GIVE_UP_AFTER, watch

FILE = """
apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata: {name: demo}
spec:
  model: {base: tiny}
  rollout: {envConfig: {imageSize: 144}}
  training: {iterations: 3}
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.chdir(tmp_path)
        Path("job.yaml").write_text(FILE)
        yield running


def test_the_job_is_created_with_the_values_of_the_flags(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--iterations", "7", "--model", "Qwen/Qwen3-VL-4B-Instruct", "--set", "training.groupSize=4"]
    words += ["--set", "metadata.name=second", "--set", "spec.inference={gpu: {count: 1}}", "--set", "trainer.gpu={}"]
    assert in_cluster("train", "--type", "rl", "--config", "job.yaml", "--no-poll", *words) == 0
    made = server.objects.get("visionrljobs", "second")
    assert made["apiVersion"] == "visionrl.dev/v1alpha1"
    assert made["kind"] == "VisionRLJob"
    assert made["spec"]["model"] == {"base": "Qwen/Qwen3-VL-4B-Instruct"}
    assert made["spec"]["training"] == {"iterations": 7, "groupSize": 4}
    assert "kubectl visionrl jobs get second -n default" in capsys.readouterr().err


def test_a_job_of_that_name_stays_as_it_is(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    put_job(server)
    assert in_cluster("train", "--config", "job.yaml", "--no-poll") == 1
    assert "visionrljobs demo already exists" in capsys.readouterr().err


def test_supervised_training_in_a_cluster_is_a_job(server: ApiServer) -> None:
    words = ["--type", "sft", "--data", "/var/cache/visionrl/train.jsonl", "--steps", "5", "--batch-size", "8"]
    words += ["--set", "evaluation.episodes=0", "--set", "storage.modelCacheClaim=data", "--context", "test"]
    assert main(["train", "--config", "job.yaml", "--no-poll", *words]) == 0
    spec = server.objects.get("visionrljobs", "demo")["spec"]
    assert spec["algorithm"] == {"type": "sft"}
    assert spec["training"]["warmStart"] == {
        "data": {"train": "/var/cache/visionrl/train.jsonl"},
        "steps": 5,
        "batchSize": 8,
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "training.groupSze=4"], "spec.training.groupSze: unknown key; did you mean groupSize?; given on"),
        (["--set", "training.groupSize=.inf"], "must be a whole number, found inf; given on the command line"),
        (["--set", "training.groupSize=1"], "spec.training.groupSize: "),
        (["--set", "training=3"], "spec.training: must be a mapping"),
    ],
)
def test_values_of_flags_are_checked_like_those_of_the_file(
    server: ApiServer, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_cluster("train", "--config", "job.yaml", *words) == 1
    assert told in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "x"],
        ["--set", "=1"],
        ["--set", "a..b=1"],
        ["--set", "a=[1"],
        ["--iterations", "0"],
        ["--iterations", "x"],
        ["--poll-timeout", "nan"],
        ["--poll-interval", "-1"],
        ["--local", "--context", "x"],
    ],
)
def test_wrong_words_end_with_2(server: ApiServer, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        in_cluster("train", "--type", "rl", "--config", "job.yaml", *words)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# --- watching


def complete(type_: Any) -> JobStatus:
    end = Condition(type=type_, status="True", reason="x", last_transition_time=TIME)
    return RUNNING.model_copy(update={"conditions": [end], "phase": type_})


@pytest.mark.parametrize(("end", "code"), [("Complete", 0), ("Failed", 1)])
def test_the_exit_code_is_that_of_the_job(
    server: ApiServer, end: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def finish(method: str, path: str) -> None:
        if method == "GET":
            server.objects.get("visionrljobs", "demo")["status"] = status_of(complete(end))

    server.objects.fault = finish
    assert in_cluster("train", "--config", "job.yaml", "--json") == code
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["status"]["phase"] == end


def test_watching_has_a_limit(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_cluster("train", "--config", "job.yaml", "--poll-timeout", "0.05", "--poll-interval", "0.01") == 3
    assert "still Pending after 0.05 s; it goes on: kubectl visionrl jobs get demo" in capsys.readouterr().err


class Away:
    """A place that answers once and then not any more."""

    def __init__(self, answers: int) -> None:
        self.answers, self.asked = answers, 0

    def job(self, name: str) -> JobRecord:
        self.asked += 1
        if self.asked == self.answers + 2:
            return JobRecord(name, "", TIME, "Complete", complete("Complete"), {})
        if self.asked > 1:
            raise PlaceError("away")
        return JobRecord(name, "", TIME, "Running", RUNNING, {})


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def status(self, status: JobStatus) -> None: ...

    def note(self, text: str, tail: Any = ()) -> None:
        self.texts.append(text)

    def close(self) -> None: ...


def test_a_place_that_is_away_for_a_while_is_asked_again() -> None:
    view: Any = Notes()
    place: Any = Away(5)
    assert watch(place, "demo", view, 1.0, None, sleep=lambda _: None).phase == "Complete"
    assert view.texts == ["away; trying again"]
    gone: Any = Away(10_000)
    with pytest.raises(PlaceError, match="away"):
        watch(gone, "demo", view, 1.0, None, sleep=lambda _: None)
    assert gone.asked == GIVE_UP_AFTER + 1


def test_a_chart_shows_the_last_values_between_its_marks() -> None:
    rows = list(bars([0.0, 1.0, 2.0, 4.0], 13, height=2))
    assert rows == ["    4.00    █", "    0.00  ▄██"]
    assert list(bars([1.0, 1.0], 1, height=1)) == ["    1.00 █"[:-1] + "█"]
    assert len(list(bars([-1.0, 1.0], 40))) == 8


def test_a_model_is_enough_to_begin_with(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--model",
        "Qwen/Qwen3-VL-4B-Instruct",
        "--set",
        "inference.gpu={}",
        "--set",
        "trainer.gpu={}",
        "--no-poll",
    ]
    assert in_cluster("train", "--type", "rl", *words) == 0
    assert server.objects.get("visionrljobs", "qwen3-vl-4b-instruct")["spec"]["training"] == {"iterations": 1}
    assert main(["train", "--type", "sft", "--model", "tiny", "--data", "none.jsonl"]) == 1
    assert "training.warmStart.steps: required" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        in_cluster("train", "--type", "rl")
    assert ended.value.code == 2


def test_the_references_variable_limits_the_watching(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNTH_TRAIN_TEST_POLL_TIMEOUT", "0.05")
    assert in_cluster("train", "--config", "job.yaml", "--poll-interval", "0.01") == 3
    monkeypatch.setenv("SYNTH_TRAIN_TEST_POLL_TIMEOUT", "soon")
    with pytest.raises(SystemExit):
        in_cluster("train", "--config", "job.yaml")
    assert "'soon' is no number of seconds" in capsys.readouterr().err
