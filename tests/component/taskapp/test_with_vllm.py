"""The task app against the real inference server: what training relies on holds for real answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.inference import InferenceServer, chat_body, random_frame, tiny_job
from tests.support.taskapp import taskapp
from visionrl.component import EXIT_HUNG
from visionrl.rollout import RolloutResponse

pytestmark = [pytest.mark.integration, pytest.mark.vision]

TURNS = 3
IMAGE_SIZE = 144
VISUAL_TOKENS = (IMAGE_SIZE // 16) ** 2


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    server = InferenceServer(tiny_job(), tmp_path_factory.mktemp("inference"), trainer_url="http://127.0.0.1:9")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, inference: InferenceServer) -> Iterator[httpx.Client]:
    with (
        taskapp(tmp_path_factory.mktemp("taskapp"), VISIONRL_INFERENCE_URL=inference.url) as app,
        app.client() as client,
    ):
        yield client


def request(
    inference: InferenceServer, run_id: str, record: dict[str, bool] | None = None, **config: object
) -> dict[str, Any]:
    settings = {
        "model": "base",
        "inference_url": inference.url,
        "use_vision": True,
        "system_prompt": "",
        "max_tokens": 16,
        "max_llm_calls": TURNS,
        "history_turns": 1,
    } | config
    env = {"seed": 1_000_000, "config": {"image_size": IMAGE_SIZE}}
    return {"run_id": run_id, "mode": "rl", "env": env, "policy": {"config": settings}, "record": record or {}}


def test_an_episode_has_the_ids_and_logprobs_that_training_needs(
    client: httpx.Client, inference: InferenceServer
) -> None:
    body = request(inference, "train", {"logprobs": True, "images": True})
    answer = RolloutResponse.model_validate_json(client.post("/rollout", json=body).raise_for_status().content)
    assert answer.aborted is False, answer.abort_message
    decisions = answer.trajectories[0].decisions
    assert len(decisions) == TURNS
    lengths = []
    for decision in decisions:
        prompt_ids, ids, logprobs = decision.prompt_token_ids, decision.token_ids, decision.logprobs
        assert prompt_ids is not None
        assert ids is not None
        assert logprobs is not None
        assert decision.model == "base"
        assert len(ids) == len(logprobs) <= 16
        assert all(value <= 0 for value in logprobs)
        pads = max(prompt_ids.count(token) for token in set(prompt_ids))
        assert pads == VISUAL_TOKENS, "one image, expanded"
        assert decision.images[0] in answer.images
        lengths.append(len(prompt_ids))
    # A former answer is in the next prompt, so prompts of an episode grow once.
    assert lengths[1] > lengths[0]


def test_an_unknown_adapter_aborts_the_episode_and_names_it(client: httpx.Client, inference: InferenceServer) -> None:
    body = request(inference, "unknown", model="no-such-adapter", turn_timeout_s=5.0)
    answer = RolloutResponse.model_validate_json(client.post("/rollout", json=body).raise_for_status().content)
    assert (answer.aborted, answer.abort_reason) == (True, "inference_error")
    assert answer.abort_message is not None
    assert "404" in answer.abort_message or "503" in answer.abort_message


def test_a_server_whose_engine_stands_still_under_a_request_ends(inference: InferenceServer) -> None:
    """Its probes are answered all the while. The last test: it needs the server no more."""
    inference.engine().suspend()
    with inference.client() as client, pytest.raises(httpx.HTTPError):
        client.post("/v1/chat/completions", json=chat_body("base", random_frame(0)))
    assert inference.wait() == EXIT_HUNG
    assert inference.last_words().startswith("hangs: ")
