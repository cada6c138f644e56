"""What the task app's tests ask it, the keys that it is given, and what it answers."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.taskapp import FakeOpenAI
from visionrl.rollout import RolloutResponse

POLICY_KEY = "a-key-for-providers"
ALIAS = "an-older-key"


def body(run_id: str, openai: FakeOpenAI | None = None, model: str = "tiny", **config: object) -> dict[str, Any]:
    settings = {"max_llm_calls": 3, "use_vision": True} | config
    if openai is None:
        policy = {"policy_name": "crafter-scripted", "config": settings}
    else:
        policy = {"config": settings | {"model": model, "inference_url": f"{openai.url}/v1"}}
    return {"run_id": run_id, "mode": "rl", "env": {"seed": 2_000_001, "config": {"image_size": 72}}, "policy": policy}


def played(answer: httpx.Response) -> RolloutResponse:
    assert answer.status_code == 200, answer.text
    return RolloutResponse.model_validate_json(answer.content)


def fields(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {problem["field"]: problem["message"] for problem in answer.json()["problems"]}
