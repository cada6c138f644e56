"""visionrl eval and visionrl filter with a real task app, real Crafter and an OpenAI server that may misbehave."""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.support.taskapp import KEY, FakeOpenAI, TaskAppProcess, fake_openai, taskapp
from visionrl.frames import decode_png
from visionrl_cli import main
from visionrl_taskapp.rollouts.simulation import GREY
from visionrl_trainer.sft.file import read_sft

SEEDS = "0-7"
QUICK = ["--turns", "6", "--policy-config", '{"max_actions": 4}']
CONFIG = """
apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata: {name: small}
spec:
  model: {base: tiny}
  rollout:
    envConfig: {imageSize: 80}
    policyConfig: {useVision: true, systemPrompt: Play Crafter., turnTimeoutS: 30, maxActions: 4, historyTurns: 0}
  training: {iterations: 1}
  evaluation: {episodes: 8}
"""


@pytest.fixture(scope="module")
def openai() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskAppProcess]:
    folder = tmp_path_factory.mktemp("taskapp")
    with taskapp(folder, VISIONRL_TRACE_DIR=str(folder), VISIONRL_POLICY_API_KEY="key") as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def there(app: TaskAppProcess, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Use the task app that runs for all tests."""
    monkeypatch.setenv("ENVIRONMENT_API_KEY", KEY)
    return ["--task-app", app.url]


def results(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["eval", "--json", *map(str, words)]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# --- who plays


def test_the_teacher_plays_on_a_task_app_that_is_started_for_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(psutil.Process().children(recursive=True))
    words = ["--policy", "crafter-scripted", "--config", config, "--turns", "20", "--trace-db", tmp_path / "traces"]
    found = results([*words, "--out", tmp_path / "out.json"], capsys)
    assert found["seeds"] == list(range(8))
    assert found["score"]["mean"] == np.mean(found["returns"]) > 5
    assert found["score"]["low"] < found["score"]["mean"] < found["score"]["high"]
    assert found["invalid_rate"] == 0
    assert found["episodes_per_minute"] > 0
    assert found["rates"]["collect_wood"] > 0.5
    assert json.loads((tmp_path / "out.json").read_text()) == found
    with sqlite3.connect(tmp_path / "traces" / "traces.db") as database:
        assert database.execute("SELECT count(*) FROM session_traces").fetchall() == [(8,)]
    assert set(psutil.Process().children(recursive=True)) == before


def test_policies_without_a_model_follow_from_the_seed_and_differ_in_skill(
    config: Path, there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(policy: str) -> list[float]:
        words = ["--policy", policy, "--config", config, "--turns", "30", "--seeds", "0-31", *there]
        returns: list[float] = results(words, capsys)["returns"]
        return returns

    blind = play("crafter-blind")
    assert play("crafter-blind") == blind
    assert np.mean(play("crafter-random")) < np.mean(blind) < np.mean(play("crafter-scripted"))


def test_a_model_behind_any_server_plays(
    config: Path, there: list[str], openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tiny", "--inference-url", openai.url, "--config", config, *QUICK, *there]
    found = results([*words, "--seeds", SEEDS, "--temperature", "0.5"], capsys)
    assert found["policy"] == "tiny"
    assert openai.bodies[-1]["temperature"] == 0.5
    assert openai.headers[-1]["authorization"] == "Bearer key"
    assert {episode["turns"] for episode in found["episodes"]} == {6}


def test_answers_without_a_call_count_as_invalid(
    config: Path, there: list[str], openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "prose", "--inference-url", openai.url, "--config", config, *QUICK, *there]
    assert results(words, capsys)["invalid_rate"] == 1.0


def test_the_grey_control_shows_a_grey_image(
    config: Path, there: list[str], openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    openai.bodies.clear()
    words = ["--model", "tiny", "--inference-url", openai.url, "--config", config, *QUICK, *there]
    results([*words, "--control", "grey", "--seeds", "0-1"], capsys)
    for body in openai.bodies:
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        assert np.all(decode_png(base64.b64decode(url.partition(",")[2])) == GREY)
    results([*words, "--control", "shuffled", "--seeds", "0-1"], capsys)


def test_two_policies_are_compared_on_the_same_seeds(
    config: Path, there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", config, "--turns", "20", *there]
    results(["--policy", "crafter-random", *words, "--out", tmp_path / "random.json"], capsys)
    against = ["--against", tmp_path / "random.json"]
    gain = results(["--policy", "crafter-scripted", *words, *against], capsys)["comparison"]["gain"]
    assert gain["low"] > 0
    assert main(["eval", "--policy", "crafter-blind", *map(str, [*words, *against])]) == 0
    assert "paired gain: " in capsys.readouterr().out
    assert main(["eval", "--policy", "crafter-blind", "--seeds", "0-5", *map(str, [*words, *against])]) == 1
    assert "only the same seeds can be compared" in capsys.readouterr().err


# --- what goes wrong


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("refuses", "could not be played: inference_error: "),
        ("garbage", "could not be played: inference_error: the server's response is no JSON"),
    ],
)
def test_a_server_that_cannot_play_is_an_error_and_not_a_score(
    model: str, message: str, config: Path, there: list[str], openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--inference-url", openai.url, "--config", config, *QUICK, *there]
    assert main(["eval", *map(str, words)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert message in found.err


def test_a_wrong_task_app_is_told_at_once(
    config: Path, app: TaskAppProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--policy", "crafter-blind", "--task-app"]
    monkeypatch.delenv("ENVIRONMENT_API_KEY", raising=False)
    assert main([*words, app.url]) == 1
    assert "the task app's key is needed: set ENVIRONMENT_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "wrong")
    assert main([*words, app.url]) == 1
    assert "refuses the key" in capsys.readouterr().err
    assert main([*words, "http://127.0.0.1:9"]) == 1
    assert "--task-app http://127.0.0.1:9: " in capsys.readouterr().err


def test_what_the_task_app_refuses_is_shown(
    there: list[str], openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", "unknown", "--inference-url", openai.url, *there]) == 1
    assert "policy.config.image_only_mode" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_behind_and_the_same_command_goes_on(config: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "out.json", tmp_path / "out.json.partial"
    words = ["--policy", "crafter-scripted", "--seeds", "0-79", "--turns", "30", "--concurrency", "1"]
    files = ["--config", str(config), "--out", str(out)]
    program = [str(Path(sys.executable).with_name("visionrl")), "eval", *words, *files]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (partial.exists() and len(partial.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert family
    assert not psutil.wait_procs(family, timeout=10)[1], "Ctrl-C left processes"
    assert f"of 80 episodes; the same command resumes from {partial}" in errors
    kept = partial.read_text().splitlines()[1:]
    again = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of 80 episodes are in {partial}" in again.stderr
    assert not partial.exists()
    played = {episode["seed"]: episode for episode in json.loads(out.read_text())["episodes"]}
    assert list(played) == list(range(80))
    assert all(played[episode["seed"]] == episode for episode in map(json.loads, kept))


# --- traces to data


def traced(folder: Path, words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> Path:
    results([*words, "--trace-db", folder], capsys)
    return folder / "traces.db"


def test_traces_of_both_policies_become_data_that_trains(
    config: Path, tmp_path: Path, openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", config, "--turns", "6"]
    perturbed = ["--policy", "crafter-scripted", "--seeds", "0-9", "--policy-config", '{"perturbation": 0.9}']
    teacher = traced(tmp_path / "teacher", [*words, *perturbed], capsys)
    model = traced(
        tmp_path / "model", [*words, "--model", "tiny", "--inference-url", openai.url, "--seeds", "5-14"], capsys
    )
    out = tmp_path / "data"
    command = ["filter", str(teacher), str(model), "--output-dir", str(out), "--val", "0.2", "--json"]
    assert main(command) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["episodes"] == {"read": 20, "kept": 20, "dropped": {}}
    assert stats["lines_by_policy"].keys() == {"crafter-scripted", "crafter-react"}
    assert stats["val"]["seeds"] == 3

    lines = [json.loads(line) for side in ("train", "val") for line in (out / f"{side}.jsonl").open()]
    labels, executed = recorded(teacher)
    for line in lines:
        metadata, answer = line["metadata"], line["messages"][-1]
        assert answer["role"] == "assistant"
        if metadata["policy_name"] == "crafter-scripted":
            assert answer["content"] == labels[metadata["session_id"], metadata["turn"]]
    differ = [key for key, label in labels.items() if executed[key] != json.loads(label.split("\n")[1])["arguments"]]
    assert differ, "nothing was perturbed"
    sides = [{json.loads(line)["metadata"]["seed"] for line in (out / f).open()} for f in ("train.jsonl", "val.jsonl")]
    assert not sides[0] & sides[1]

    data = read_sft(out / "train.jsonl", out / "val.jsonl", 80)
    assert len(data.training) + len(data.validation) == len(lines)
    assert [each.label for each in data.training] == [line["messages"][-1]["content"] for line in lines][
        : len(data.training)
    ]
    with sqlite3.connect(teacher) as database:
        frames = dict(database.execute("SELECT sha256, png FROM images"))
    assert all(data.images[name] == frames[name] for name in data.images.keys() & frames.keys())
    assert {name for each in [*data.training, *data.validation] for name in each.images} == data.images.keys()

    first = {file.name: file.read_bytes() for file in out.iterdir()}
    assert main(command) == 0
    capsys.readouterr()
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first

    assert main([*command[:-1], "--images", "files", "--save-filtered-episode-ids"]) == 0
    assert "images" in capsys.readouterr().out
    beside = read_sft(out / "train.jsonl", out / "val.jsonl", 80)
    assert (beside.training, beside.images) == (data.training, data.images)
    ids = json.loads((out / "episode_ids.json").read_text())
    assert len(ids[str(teacher)]["kept"]) == 10


def recorded(file: Path) -> tuple[dict[tuple[str, int], str], dict[tuple[str, int], dict[str, list[str]]]]:
    """Labels and executed actions by episode and turn, as the trace has them."""
    query = (
        "SELECT t.session_id, t.turn_number, e.event_type, e.content FROM events e "
        "JOIN session_timesteps t ON e.timestep_id = t.id"
    )
    labels, executed = {}, {}
    with sqlite3.connect(file) as database:
        for session, turn, kind, content in database.execute(query):
            if kind == "llm_call":
                labels[session, turn] = json.loads(content)["label"]
            else:
                executed[session, turn] = {"actions": json.loads(content)["actions"]}
    return labels, executed
