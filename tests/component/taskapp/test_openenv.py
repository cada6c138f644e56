"""A real OpenEnv server, made with the package `openenv` in its own environment, played through the real task app."""

from __future__ import annotations

import subprocess
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.component.taskapp.test_environments import play
from tests.support.ports import free_port
from tests.support.taskapp import taskapp

SERVER = Path(__file__).parents[2] / "support" / "openenv_server"
"""Its requirements, gradio and fastmcp among them, are not the project's."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("openenv")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "-r", SERVER / "requirements.txt"], check=True)
    port = free_port()
    process = subprocess.Popen([python, SERVER / "game.py", str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while not _answers(url):
            assert process.poll() is None, "the OpenEnv server ended"
            assert time.monotonic() < deadline, "the OpenEnv server did not start"
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_episodes_of_a_real_server_are_sessions_of_it(server: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "url": server,
        "actions": {"up": {"add": 1}, "stay": {"add": 0}},
        "imageField": "screen",
        "imageEncoding": "flat",
        "shapeField": "shape",
        "scoreFields": ["count"],
        "imageSize": 64,
    }
    found: list[Any] = []
    with taskapp(tmp_path) as app:

        def one(seed: int) -> None:
            found.append(play(app, "openenv", "random", config, seed=seed, max_llm_calls=20))

        threads = [threading.Thread(target=one, args=[seed]) for seed in range(6)]  # two at once; the others wait
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [each.aborted for each in found] == [False] * 6
    assert all(each.metrics.mean_return == 1.0 for each in found)
    assert all(each.metrics.scores["count"] == 4 for each in found)
    assert all(each.trajectories[0].decisions[-1].unlocked == ["success"] for each in found)
