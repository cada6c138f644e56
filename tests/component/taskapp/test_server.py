"""The task app as a server: a real process, who may ask it, what it says of itself, floods, its start and its end."""

import contextlib
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.rollout_requests import ALIAS, body, fields, played
from tests.support.taskapp import KEY, FakeOpenAI, TaskAppProcess, taskapp, taskapp_command

# --- who may ask


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"x-api-key": ALIAS},
        {"x-api-keys": f"other, {KEY}"},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
    ],
)
def test_a_key_opens_in_every_form(app: TaskAppProcess, headers: dict[str, str]) -> None:
    assert httpx.get(f"{app.url}/info", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/info", "/task_info", "/rollout", "/done", "/docs"])
@pytest.mark.parametrize("headers", [{}, {"x-api-key": KEY[:-1]}, {"authorization": f"Basic {KEY}"}, {"x-api-key": ""}])
def test_nothing_but_health_opens_without_a_key_and_none_is_shown(
    app: TaskAppProcess, path: str, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{app.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert KEY[:6] not in answer.text + str(answer.headers)


def test_health_needs_no_key(app: TaskAppProcess) -> None:
    answer = httpx.get(f"{app.url}/health")
    assert answer.status_code == 200
    assert answer.json() == {"healthy": True, "ready": True, "auth": {"required": True, "configured": True}}


def test_no_page_of_another_site_may_ask(client: httpx.Client) -> None:
    answer = client.get("/info", headers={"origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_without_any_key_everything_is_closed(tmp_path: Path) -> None:
    with taskapp(tmp_path, VISIONRL_KEY_FILE="") as keyless:
        assert httpx.get(f"{keyless.url}/health").status_code == 503
        answer = httpx.get(f"{keyless.url}/info", headers={"x-api-key": ""})
        assert answer.status_code == 503
        assert "VISIONRL_KEY_FILE" in answer.json()["error"]


# --- what it says about itself


def test_info_and_task_info_describe_the_task(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert len(info["action_space"]["actions"]) == 17
    assert info["dataset"]["default_seed"] == 42
    assert info["runtime"]["traces"]["failed"] == 0
    assert client.get("/task_info").json()["seed"] == 42
    assert client.get("/task_info?seed=7").json()["seed"] == 7
    assert [info["seed"] for info in client.get("/task_info?seeds=1,2&seed=3").json()] == [1, 2, 3]


@pytest.mark.parametrize("query", ["seed=-1", "seed=x", "seeds=1,,2", "sed=1", "seed=99999999999999999999"])
def test_a_wrong_seed_is_named(client: httpx.Client, query: str) -> None:
    assert set(fields(client.get(f"/task_info?{query}"))) == {query.partition("=")[0]}


def test_an_unknown_path_is_a_json_404(client: httpx.Client) -> None:
    answer = client.get("/nothing")
    assert (answer.status_code, answer.json()["error"]) == (404, "Not Found")
    assert client.get("/rollout").status_code == 405


# --- floods


def test_health_and_rollouts_survive_more_half_open_connections_than_files(tmp_path: Path, openai: FakeOpenAI) -> None:
    command = ["prlimit", "--nofile=256", sys.executable, "-m", "visionrl_taskapp"]
    variables = {"VISIONRL_INFERENCE_URL": openai.url}
    with taskapp_command(command, tmp_path, variables) as app, contextlib.ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", app.port), timeout=60))
            connection.sendall(b"GET /health HTTP/1.1\r\nx:")
        assert httpx.get(f"{app.url}/health", timeout=60).status_code == 200
        with app.client() as client:
            assert played(client.post("/rollout", json=body("flooded", openai))).trajectories[0].length == 3


def test_a_flood_of_headers_without_a_key_does_not_fill_the_memory(app: TaskAppProcess) -> None:
    before = resident_mib(app)
    for beginning in (b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nx: ", b"GET /"):
        with socket.create_connection(("127.0.0.1", app.port), timeout=60) as connection:
            connection.sendall(beginning)
            piece = b"".join(b"x-%d: %b\r\n" % (index, b"v" * 1000) for index in range(1000))
            with contextlib.suppress(ConnectionError):  # hung up on
                for _ in range(200):
                    connection.sendall(piece)
    assert resident_mib(app) - before < 64
    assert httpx.get(f"{app.url}/health").status_code == 200


def resident_mib(app: TaskAppProcess) -> float:
    lines = Path(f"/proc/{app.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


# --- starting and stopping


def test_sigterm_answers_the_episodes_in_flight_and_ends_with_code_zero(tmp_path: Path, openai: FakeOpenAI) -> None:
    with taskapp(tmp_path, VISIONRL_INFERENCE_URL=openai.url) as app, ThreadPoolExecutor(1) as thread:
        openai.asked.clear()
        answer = thread.submit(lambda: app.client().post("/rollout", json=body("stopped", openai, model="slow")))
        assert openai.asked.wait(30)
        code, output = app.stop()
        stopped = played(answer.result())
    assert (stopped.aborted, stopped.abort_reason, code) == (True, "cancelled", 0)
    assert KEY not in output


@pytest.mark.parametrize(
    "variables",
    [{"VISIONRL_KEY_FILE": "/nothing/here"}, {"VISIONRL_PORT": "high"}, {"VISIONRL_TRACE_MAX_EPISODES": "none"}],
)
def test_a_configuration_that_cannot_work_ends_with_code_two_and_its_name(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "visionrl_taskapp"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert next(iter(variables)) in ended.stdout


def test_help_teaches_the_first_request() -> None:
    shown = subprocess.run([sys.executable, "-m", "visionrl_taskapp", "--help"], capture_output=True, text=True).stdout
    assert "VISIONRL_KEY_FILE" in shown
    assert "crafter-scripted" in shown
    json.loads(shown[shown.index('{"run_id"') :].rsplit("'", 1)[0])
