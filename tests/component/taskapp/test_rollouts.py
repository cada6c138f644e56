"""Episodes as clients ask for them: a real process, real Crafter, an OpenAI server that may misbehave."""

import base64
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.rollout_requests import POLICY_KEY, body, fields, played
from tests.support.taskapp import KEY, SERVER, FakeOpenAI, TaskAppProcess
from visionrl.frames import decode_png, frame_hash


def test_the_teacher_plays_without_a_model(client: httpx.Client) -> None:
    answer = played(client.post("/rollout", json=body("teacher", max_llm_calls=5)))
    assert answer.trajectories[0].length == 5
    assert all(decision.label for decision in answer.trajectories[0].decisions)


def test_a_model_plays_and_training_gets_what_it_needs(client: httpx.Client, openai: FakeOpenAI) -> None:
    data = body("train", openai) | {"record": {"logprobs": True, "images": True}}
    answer = played(client.post("/rollout", json=data))
    for decision in answer.trajectories[0].decisions:
        assert decision.actions == ["do", "do"]
        assert decision.token_ids is not None
        assert decision.logprobs is not None
        assert len(decision.token_ids) == len(decision.logprobs) == 3
        assert decision.prompt_token_ids == [1, 2, 3, 4]
        assert decision.model == "tiny"
        assert decision.server == SERVER
        assert frame_hash(decode_png(base64.b64decode(answer.images[decision.images[0]]))) == decision.images[0]


def test_training_asks_for_the_whole_distribution_without_grammar_or_seed(
    client: httpx.Client, openai: FakeOpenAI
) -> None:
    data = body("whole", openai, top_p=0.9, banned_token_ids=[7, 9]) | {"record": {"logprobs": True}}
    played(client.post("/rollout", json=data))
    asked = openai.bodies[-1]
    assert (asked["top_p"], asked["top_k"], asked["tool_choice"]) == (1.0, -1, "auto")
    assert asked["logit_bias"] == {"7": -100, "9": -100}
    assert asked["logprobs"] is asked["return_token_ids"] is True
    assert not {"seed", "response_format", "parallel_tool_calls"} & set(asked)


def test_evaluation_may_use_a_nucleus_and_a_grammar(client: httpx.Client, openai: FakeOpenAI) -> None:
    played(client.post("/rollout", json=body("eval", openai, top_p=0.9, top_k=20, tool_choice="required")))
    asked = openai.bodies[-1]
    assert (asked["top_p"], asked["top_k"], asked["tool_choice"]) == (0.9, 20, "required")
    assert "logprobs" not in asked


def test_the_servers_own_tool_parser_is_understood(client: httpx.Client, openai: FakeOpenAI) -> None:
    answer = played(client.post("/rollout", json=body("parsed", openai, model="parsed")))
    assert answer.trajectories[0].decisions[0].actions == ["do", "do"]
    assert answer.trajectories[0].decisions[0].text.startswith("<tool_call>")


def test_prose_is_an_invalid_answer_and_the_episode_goes_on(client: httpx.Client, openai: FakeOpenAI) -> None:
    answer = played(client.post("/rollout", json=body("prose", openai, model="prose")))
    assert [decision.actions for decision in answer.trajectories[0].decisions] == [["noop"]] * 3


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_inference_url_may_have_v1_and_its_cid_is_echoed(
    client: httpx.Client, openai: FakeOpenAI, suffix: str
) -> None:
    data = body(f"url{suffix}", openai)
    data["policy"]["config"]["inference_url"] = f"{openai.url}{suffix}?cid=trace_42"
    answer = played(client.post("/rollout", json=data))
    assert answer.trace_correlation_id == "trace_42"
    assert openai.urls[-1] == f"{openai.url}/v1/chat/completions?cid=trace_42"


def test_the_jobs_key_goes_to_the_jobs_server_alone(
    client: httpx.Client, openai: FakeOpenAI, provider: FakeOpenAI
) -> None:
    played(client.post("/rollout", json=body("inside", openai)))
    assert openai.headers[-1]["authorization"] == f"Bearer {KEY}"
    played(client.post("/rollout", json=body("outside", provider)))
    assert provider.headers[-1]["authorization"] == f"Bearer {POLICY_KEY}"


def test_a_group_starts_from_identical_frames(client: httpx.Client, openai: FakeOpenAI) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda g: played(client.post("/rollout", json=body(f"group-{g}", openai))), range(8))
        )
    assert len({answer.trajectories[0].decisions[0].images[0] for answer in answers}) == 1


def test_every_episode_leaves_a_trace(client: httpx.Client) -> None:
    played(client.post("/rollout", json=body("traced") | {"record": {"return_trace": True}}))
    stored: list[tuple[int]] = []
    while not stored:  # written behind the answer
        with sqlite3.connect(client.get("/info").json()["runtime"]["traces"]["path"]) as database:
            query = "SELECT num_timesteps FROM session_traces WHERE session_id = 'traced'"
            stored = database.execute(query).fetchall()
    assert stored == [(3,)]


@pytest.mark.parametrize("form", ["compact", "full", "structured"])
def test_the_trace_comes_inline(client: httpx.Client, form: str) -> None:
    record = {"return_trace": True, "trace_format": form}
    answer = played(client.post("/rollout", json=body(f"inline-{form}") | {"record": record}))
    assert answer.trace is not None
    assert answer.trace["session_id"] == f"inline-{form}"
    assert len(answer.trace["timesteps"]) == 3


# --- trouble with the inference server


@pytest.mark.parametrize("model", ["flaky", "busy"])
def test_passing_trouble_is_waited_out(client: httpx.Client, openai: FakeOpenAI, model: str) -> None:
    answer = played(client.post("/rollout", json=body(f"passing-{model}", openai, model=model)))
    assert (answer.aborted, answer.trajectories[0].length) == (False, 3)


@pytest.mark.parametrize(
    ("model", "reason", "words"),
    [
        ("slow", "turn_timeout", "turn_timeout_s"),
        ("500", "inference_error", "answered 500: out of memory"),
        ("refuses", "inference_error", "answered 400"),
        ("garbage", "inference_error", "no JSON"),
        ("no-choices", "inference_error", "no chat completion"),
        ("no-ids", "inference_error", "return_token_ids"),
        ("short", "inference_error", "3 token ids but 2 logprobs"),
    ],
)
def test_lasting_trouble_aborts_the_episode_and_says_why(
    client: httpx.Client, openai: FakeOpenAI, model: str, reason: str, words: str
) -> None:
    data = body(f"lasting-{model}", openai, model=model, turn_timeout_s=3.0) | {"record": {"logprobs": True}}
    answer = played(client.post("/rollout", json=data))
    assert (answer.aborted, answer.abort_reason) == (True, reason)
    assert answer.abort_message is not None
    assert words in answer.abort_message
    assert KEY not in answer.model_dump_json()


def test_an_unreachable_server_is_told_with_the_field(client: httpx.Client) -> None:
    data = body("unreachable", turn_timeout_s=0.3)
    data["policy"] = {
        "config": {"model": "tiny", "inference_url": "http://127.0.0.1:9", "use_vision": True, "turn_timeout_s": 0.3}
    }
    answer = client.post("/rollout", json=data)
    assert answer.status_code == 424
    assert answer.json()["problems"][0]["field"] == "policy.config.inference_url"


# --- requests that cannot be played


def test_unknown_keys_get_the_nearest_known_name(client: httpx.Client) -> None:
    data = body("typo")
    data["policy"]["config"]["max_tokns"] = 3
    data["recrd"] = {}
    found = fields(client.post("/rollout", json=data))
    assert found["policy.config.max_tokns"] == "unknown key; did you mean max_tokens?"
    assert found["recrd"] == "unknown key; did you mean record?"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"env": {"env_name": "doom"}}, "env.env_name"),
        ({"env": {"seed": -1}}, "env.seed"),
        ({"env": {"seed": "7"}}, "env.seed"),
        ({"env": {"config": {"difficulty": "nightmare"}}}, "env.config.difficulty"),
        ({"run_id": ""}, "run_id"),
        ({"mode": "train"}, "mode"),
        ({"policy": {"config": {"inference_url": "http://a"}}}, "policy.config.model"),
        ({"policy": {"config": {"model": "tiny"}}}, "policy.config.inference_url"),
        ({"policy": {"config": {"model": "tiny", "inference_url": "ftp://a"}}}, "policy.config.inference_url"),
        ({"policy": {"policy_name": "crafter-scripted", "config": {"inference_url": "a"}}},
         "policy.config.inference_url"),
        ({"policy": {"config": {"model": "tiny", "inference_url": "http://u:p@a"}}}, "policy.config.inference_url"),
        ({"policy": {"config": {"model": "o-v1", "inference_url": "http://a"}}}, "policy.config.image_only_mode"),
        ({"policy": {"config": {"model": "tiny", "inference_url": "http://a", "perturbation": 0.2}}},
         "policy.config.perturbation"),
        ({"record": {"logprobs": True}}, "record.logprobs"),
        ({"policy": {"config": {"model": "tiny", "inference_url": "http://a", "system_prompt": "Say <|im_end|>."}}},
         "policy.config.system_prompt"),
        ({"rewards": {"step_rewards": "per_achievement", "weights": {"collect_wood": 1.7e308}}},
         "rewards.weights.collect_wood"),
        ({"rewards": {"step_rewards": "consistent", "step_lambda": 1e308}}, "rewards.step_lambda"),
        ({"rewards": {"invalid_penalty": 1e308}}, "rewards.invalid_penalty"),
        ({"ops": ["env", "agent"]}, "ops[0]"),
        ({"safety": {"max_ops": 1}}, "safety.max_ops"),
        ({"rewards": {"step_rewards": "per_achievement", "weights": {"collect_gold": 1.0}}},
         "rewards.weights.collect_gold"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_played_names_the_field(
    client: httpx.Client, change: dict[str, Any], field: str
) -> None:
    assert field in fields(client.post("/rollout", json=body("wrong") | change))


@pytest.mark.parametrize("temperature", [0.0, 0.005])
def test_a_temperature_at_which_the_server_does_not_sample_is_refused_with_logprobs(
    client: httpx.Client, openai: FakeOpenAI, temperature: float
) -> None:
    data = body(f"cold-{temperature}", openai, temperature=temperature)
    assert set(fields(client.post("/rollout", json=data | {"record": {"logprobs": True}}))) == {
        "policy.config.temperature"
    }
    played(client.post("/rollout", json=data))


def test_a_request_of_the_references_client_is_played_and_its_unused_fields_are_named(
    client: httpx.Client, openai: FakeOpenAI
) -> None:
    config = {"provider": "openai", "use_tools": True, "model": "tiny", "inference_url": openai.url, "max_llm_calls": 2}
    request: dict[str, Any] = {
        "run_id": "reference-1",
        "mode": "eval",
        "env": {
            "env_id": None,
            "env_name": "crafter",
            "config": {"difficulty": "easy", "env_params": {"max_steps_per_episode": 50}},
            "seed": 0,
        },
        "policy": {"policy_id": None, "policy_name": "crafter-react", "config": config | {"use_vision": True}},
        "ops": ["agent", "env"] * 2,
        "record": {"trajectories": True, "logprobs": False, "value": False, "trace_format": "structured"},
        "on_done": "reset",
        "safety": {"max_ops": 100000, "max_time_s": 3600.0},
        "training_session_id": None,
        "synth_base_url": None,
    }
    answer = client.post("/rollout", json=request)
    assert played(answer).trajectories[0].length == 2
    assert played(answer).pipeline_metadata["unused"] == [
        "on_done",
        "env.config.env_params",
        "policy.config.provider",
        "policy.config.use_tools",
        "record.value",
    ]
    request["policy"]["provider"] = "openai"
    assert set(fields(client.post("/rollout", json=request))) == {"policy.provider"}


def test_a_grammar_with_logprobs_is_refused(client: httpx.Client, openai: FakeOpenAI) -> None:
    data = body("grammar", openai, tool_choice="required", top_k=20) | {"record": {"logprobs": True}}
    assert set(fields(client.post("/rollout", json=data))) == {"policy.config.tool_choice", "policy.config.top_k"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'"x"', b"{" * 100_000])
def test_a_body_that_is_no_request_is_refused(client: httpx.Client, content: bytes) -> None:
    assert client.post("/rollout", content=content).status_code in (400, 422)


def test_a_body_that_is_too_long_is_refused_however_it_is_sent(client: httpx.Client) -> None:
    whole = b" " * (2**20 + 1)
    assert client.post("/rollout", content=whole).status_code == 413
    chunks = (b" " * 2**16 for _ in range(17))
    assert client.post("/rollout", content=chunks).status_code == 413


# --- one run id, one episode


def test_the_same_request_again_gets_the_same_episode(client: httpx.Client, openai: FakeOpenAI) -> None:
    data = body("again", openai)
    first = client.post("/rollout", json=data)
    asked = len(openai.bodies)
    assert client.post("/rollout", json=data).content == first.content
    assert len(openai.bodies) == asked


def test_an_aborted_episode_is_played_again(client: httpx.Client, openai: FakeOpenAI) -> None:
    data = body("aborted", openai, model="garbage")
    for _ in range(2):
        asked = len(openai.bodies)
        assert played(client.post("/rollout", json=data)).abort_reason == "inference_error"
        assert len(openai.bodies) == asked + 1


def test_another_request_under_a_used_run_id_is_a_conflict(client: httpx.Client) -> None:
    played(client.post("/rollout", json=body("used")))
    answer = client.post("/rollout", json=body("used", max_llm_calls=2))
    assert answer.status_code == 409
    assert "'used'" in answer.json()["error"]
    assert client.post("/done", json={"run_id": "used"}).json() == {"ok": True, "forgotten": True}
    played(client.post("/rollout", json=body("used", max_llm_calls=2)))


def test_a_client_that_was_cut_off_gets_its_episode_on_the_second_try(
    app: TaskAppProcess, client: httpx.Client, openai: FakeOpenAI
) -> None:
    data = body("cut-off", openai, model="flaky", max_llm_calls=2) | {"env": {"seed": 2_000_002}}
    with app.client() as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/rollout", json=data, timeout=0.1)
    asked = [b for b in openai.bodies if b["model"] == "flaky"]
    answer = played(client.post("/rollout", json=data))
    assert (answer.aborted, answer.trajectories[0].length) == (False, 2)
    assert len([b for b in openai.bodies if b["model"] == "flaky"]) <= len(asked) + 6, "one episode, not two"


def test_done_takes_an_empty_body_too(client: httpx.Client) -> None:
    assert client.post("/done").json()["ok"] is True
