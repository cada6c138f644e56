"""One task app for the tests of a file, beside an OpenAI server that may misbehave."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.rollout_requests import ALIAS, POLICY_KEY
from tests.support.taskapp import FakeOpenAI, TaskAppProcess, fake_openai, taskapp


@pytest.fixture(scope="module")
def openai() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, openai: FakeOpenAI) -> Iterator[TaskAppProcess]:
    folder = tmp_path_factory.mktemp("taskapp")
    variables = {
        "VISIONRL_INFERENCE_URL": openai.url,
        "VISIONRL_POLICY_API_KEY": POLICY_KEY,
        "ENVIRONMENT_API_KEY_ALIASES": f"{ALIAS}, ",
        "VISIONRL_TRACE_DIR": str(folder),
    }
    with taskapp(folder, **variables) as running:
        yield running


@pytest.fixture(scope="module")
def client(app: TaskAppProcess) -> Iterator[httpx.Client]:
    with app.client() as client:
        yield client
