"""Environments beside Crafter, each through the real server: of a job, of a request, of another machine."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.support.ports import free_port
from tests.support.taskapp import TaskAppProcess, taskapp
from visionrl.frames import decode_png
from visionrl.job import Job
from visionrl.rollout import RolloutResponse
from visionrl_taskapp.envs import openenv
from visionrl_taskapp.envs.openenv import OpenEnvEnvironment, ServerError
from visionrl_taskapp.envs.png import encode_png

RED_BALL: dict[str, Any] = {
    "id": "BabyAI-GoToRedBall-v0",
    "kwargs": {"tile_size": 16, "room_size": 6, "num_dists": 0, "highlight": False},
    "imageSize": 96,
    "length": 15,
}


def job_file(folder: Path, env_name: str, env_config: dict[str, Any], **algorithm: str) -> str:
    document = {
        "apiVersion": "visionrl.dev/v1alpha1",
        "kind": "VisionRLJob",
        "metadata": {"name": "game"},
        "spec": {
            "algorithm": algorithm,
            "model": {"base": "tiny"},
            "training": {"iterations": 1},
            "rollout": {"envName": env_name, "envConfig": env_config},
        },
    }
    file = folder / "job.json"
    file.write_text(Job.model_validate(document).model_dump_json(by_alias=True))
    return str(file)


def play(
    app: TaskAppProcess, name: str, policy: str, config: dict[str, Any], seed: int = 7, **policy_config: Any
) -> Any:
    body = {
        "run_id": f"{policy}-{seed}",
        "mode": "eval",
        "env": {"env_name": name, "config": config, "seed": seed},
        "policy": {
            "policy_name": f"{name}-{policy}",
            "config": {"max_llm_calls": 5, "max_actions": 3, **policy_config},
        },
        "record": {"images": True, "messages": True},
    }
    with app.client() as client:
        answer = client.post("/rollout", json=body)
    assert answer.status_code == 200, answer.text
    return RolloutResponse.model_validate_json(answer.text)


def refusal(folder: Path, env_name: str, env_config: dict[str, Any], **algorithm: str) -> tuple[int, str]:
    """Exit code and output of a task app whose job cannot be played."""
    variables = {"VISIONRL_JOB": job_file(folder, env_name, env_config, **algorithm), "PATH": ""}
    command = [sys.executable, "-m", "visionrl_taskapp"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_gymnasium_job_is_described_warmed_up_and_played(tmp_path: Path) -> None:
    with taskapp(tmp_path, VISIONRL_JOB=job_file(tmp_path, "gymnasium", RED_BALL)) as app:
        with app.client() as client:
            info = client.get("/task_info").json()
        assert (info["environment"], info["achievements"]) == ("gymnasium", ["success"])
        assert info["inference"]["policies"] == ["gymnasium-react", "gymnasium-scripted", "gymnasium-random"]
        found = play(app, "gymnasium", "scripted", RED_BALL)
        decisions = found.trajectories[0].decisions
        assert [name for decision in decisions for name in decision.unlocked] == ["success"]
        assert found.metrics.mean_return == sum(decision.reward.env for decision in decisions) > 0
        assert found.trajectories[0].final["terminated"] is True
        assert all(decode_png(base64.b64decode(png)).shape == (96, 96, 3) for png in found.images.values())
        assert found.tools[0]["function"]["parameters"]["properties"]["actions"]["items"]["enum"][:2] == [
            "left",
            "right",
        ]
        text = decisions[0].messages[-1]["content"][0]
        assert text == {"type": "text", "text": "go to the red ball"}
        states = [
            play(app, "gymnasium", "random", RED_BALL, seed=seed).trajectories[0].decisions[0].state_hash
            for seed in (1, 2)
        ]
        assert states[0] != states[1]


@pytest.mark.parametrize(
    ("name", "settings", "algorithm", "message"),
    [
        ("gymnasium", {"id": "Pendulum-v1"}, {}, "spec.rollout.envConfig.id: Pendulum-v1 has Box actions"),
        ("chess", {}, {}, "spec.rollout.envName: no environment 'chess' is installed here"),
        (
            "openenv",
            {"url": "http://games:8000", "actions": {"up": {"action": 1}}, "imageField": "screen"},
            {"advantage": "state_anchored"},
            "spec.algorithm.advantage: state_anchored compares equal states of a group, and openenv does not promise",
        ),
    ],
)
def test_a_job_that_cannot_be_played_ends_the_task_app_with_the_field(
    tmp_path: Path, name: str, settings: dict[str, Any], algorithm: dict[str, str], message: str
) -> None:
    code, output = refusal(tmp_path, name, settings, **algorithm)
    assert code == 2
    assert message in output


# --- OpenEnv, by a small server that speaks its protocol; tests/component/taskapp/test_openenv.py has the real one


class Games:
    """Sessions of a counting game: the image shows the count, `up` adds to it, 3 wins. `places` sessions at most."""

    def __init__(self, places: int) -> None:
        self.free = threading.Semaphore(places)
        self.refused = 0

    def session(self, socket: ServerConnection) -> None:
        if not self.free.acquire(blocking=False):
            self.refused += 1
            socket.send(json.dumps({"type": "error", "data": {"code": "CAPACITY_REACHED", "message": "full"}}))
            return
        try:
            count = 0
            for text in socket:
                message = json.loads(text)
                count = message["data"]["seed"] % 2 if message["type"] == "reset" else count + message["data"]["add"]
                pixels = np.full((8, 8, 3), 40 * count, np.uint8)
                observation = {"count": count, "view": {"png": base64.b64encode(encode_png(pixels)).decode()}}
                won = count >= 3
                socket.send(
                    json.dumps(
                        {"type": "observation", "data": {"observation": observation, "reward": float(won), "done": won}}
                    )
                )
        finally:
            self.free.release()


@contextmanager
def games(places: int, port: int = 0, statuses: list[HTTPStatus] | None = None) -> Iterator[tuple[Games, str]]:
    """Their server and its URL; it answers with the statuses first, each once."""
    served = Games(places)

    def refusal(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(statuses.pop(0), "") if statuses else None

    with serve(served.session, "127.0.0.1", port, process_request=refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield served, f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def counting(url: str) -> dict[str, Any]:
    return {
        "url": url,
        "actions": {"up": {"add": 1}, "stay": {"add": 0}},
        "imageField": "view.png",
        "scoreFields": ["count"],
        "imageSize": 64,
    }


def test_episodes_of_an_openenv_server_wait_for_its_free_sessions(tmp_path: Path) -> None:
    with games(places=1) as (served, url), taskapp(tmp_path) as app:
        config, found = counting(url), []
        threads = [
            threading.Thread(target=lambda seed=seed: found.append(play(app, "openenv", "random", config, seed=seed)))
            for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [each.aborted for each in found] == [False] * 4
        assert all(each.metrics.scores["count"] >= 0 for each in found)
        assert served.refused > 0


def test_an_episode_that_gets_no_session_is_aborted_within_its_turn(tmp_path: Path) -> None:
    with games(places=0) as (_, url), taskapp(tmp_path) as app:
        found = play(app, "openenv", "random", counting(url), turn_timeout_s=1.0)
        assert (found.aborted, found.abort_reason) == (True, "turn_timeout")
        short = play(app, "openenv", "random", {**counting(url), "waitSeconds": 0.5}, seed=8)
        assert short.abort_reason == "environment_error"
        assert "no session in 0.5 s: CAPACITY_REACHED" in (short.abort_message or "")


class Waiting(threading.Event):
    """What a reset waits on; ``then`` is done instead of the wait."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self.then = then

    def wait(self, timeout: float | None = None) -> bool:
        self.then()
        return False


def session_of(url: str, waiting: Waiting) -> OpenEnvEnvironment:
    environment = OpenEnvEnvironment(openenv.Settings.model_validate(counting(url)))
    environment._closed = waiting
    return environment


def test_a_reset_waits_for_a_server_that_does_not_listen_yet() -> None:
    port = free_port()
    with ExitStack() as later:
        waiting = Waiting(lambda: later.enter_context(games(places=1, port=port)))
        environment = session_of(f"http://127.0.0.1:{port}", waiting)
        environment.reset(1)
        assert environment.scores() == {"count": 1}
        environment.close()


def test_a_reset_waits_for_a_server_behind_a_proxy_that_has_none_yet() -> None:
    statuses = [HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE]
    waits: list[None] = []
    with games(places=1, statuses=statuses) as (_, url):
        environment = session_of(url, Waiting(lambda: waits.append(None)))
        environment.reset(1)
        environment.close()
    assert (statuses, len(waits)) == ([], 2)


@pytest.mark.parametrize(
    "url", ["http://games.invalid:8000", "https://127.0.0.1:{port}", "http://127.0.0.1:{port}/game"]
)
def test_a_reset_does_not_wait_for_a_server_of_another_name_protocol_or_path(url: str) -> None:
    with games(places=1, statuses=[HTTPStatus.NOT_FOUND]) as (_, served):
        waiting = Waiting(lambda: pytest.fail("it waits"))
        environment = session_of(url.format(port=urlsplit(served).port), waiting)
        with pytest.raises(ServerError, match="cannot be reached"):
            environment.reset(1)


def test_a_server_that_is_not_there_or_sends_no_picture_aborts_with_the_reason(tmp_path: Path) -> None:
    with games(places=1) as (_, url), taskapp(tmp_path) as app:
        wrong = play(app, "openenv", "random", {**counting(url), "imageField": "screen"})
        assert "the observation has no screen; it has count, view" in (wrong.abort_message or "")
        gone = play(app, "openenv", "random", {**counting("http://127.0.0.1:9"), "waitSeconds": 0.5}, seed=9)
        assert "cannot be reached" in (gone.abort_message or "")
