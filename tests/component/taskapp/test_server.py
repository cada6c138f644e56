"""The task app as its clients meet it: a real process, real Crafter, an OpenAI server that may misbehave."""

import base64
import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.taskapp import KEY, SERVER, FakeOpenAI, TaskAppProcess, fake_openai, taskapp, taskapp_command
from visionrl.frames import decode_png, frame_hash
from visionrl.rollout import RolloutResponse

POLICY_KEY = "a-key-for-providers"
ALIAS = "an-older-key"


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


# --- playing


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
