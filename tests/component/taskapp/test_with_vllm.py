"""The task app against the real inference server: what training relies on holds for real answers."""

import pytest

from tests.support.inference import InferenceServer, tiny_job
from tests.support.taskapp import taskapp
from visionrl.rollout import RolloutResponse

pytestmark = [pytest.mark.integration, pytest.mark.vision]

TURNS = 3
IMAGE_SIZE = 144
VISUAL_TOKENS = (IMAGE_SIZE // 16) ** 2


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    server = InferenceServer(tiny_job(), tmp_path_factory.mktemp("inference"), trainer_url="http://127.0.0.1:9")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def client(tmp_path_factory, inference):
    with (
        taskapp(tmp_path_factory.mktemp("taskapp"), VISIONRL_INFERENCE_URL=inference.url) as app,
        app.client() as client,
    ):
        yield client


def request(inference, run_id, record=None, **config):
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


def test_an_episode_has_the_ids_and_logprobs_that_training_needs(client, inference):
    body = request(inference, "train", {"logprobs": True, "images": True})
    answer = RolloutResponse.model_validate_json(client.post("/rollout", json=body).raise_for_status().content)
    assert answer.aborted is False, answer.abort_message
    decisions = answer.trajectories[0].decisions
    assert len(decisions) == TURNS
    for decision in decisions:
        assert decision.model == "base"
        assert len(decision.token_ids) == len(decision.logprobs) <= 16
        assert all(value <= 0 for value in decision.logprobs)
        pads = max(decision.prompt_token_ids.count(token) for token in set(decision.prompt_token_ids))
        assert pads == VISUAL_TOKENS, "one image, expanded"
        assert decision.images[0] in answer.images
    # A former answer is in the next prompt, so prompts of an episode grow once.
    assert len(decisions[1].prompt_token_ids) > len(decisions[0].prompt_token_ids)


def test_an_unknown_adapter_aborts_the_episode_and_names_it(client, inference):
    body = request(inference, "unknown", model="no-such-adapter", turn_timeout_s=5.0)
    answer = RolloutResponse.model_validate_json(client.post("/rollout", json=body).raise_for_status().content)
    assert (answer.aborted, answer.abort_reason) == (True, "inference_error")
    assert "404" in answer.abort_message or "503" in answer.abort_message
