"""One real vLLM server on the CPU, started as a container starts it, with a stand-in for the trainer."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.inference import (
    JOB_NAME,
    KEY,
    SEEN_WHOLE,
    InferenceServer,
    chat_body,
    complete,
    logprobs_by_transformers,
    publish_adapter,
    random_frame,
    sampled,
    tiny_job,
)
from tests.support.trainer import StandInTrainer, named_by_content
from visionrl.adapters import ADAPTERS_PATH, SERVER_HEADER, Manifest
from visionrl.crafter import ACTIONS
from visionrl.frames import frame_hash
from visionrl.job import TinyModel
from visionrl.tiny.model import PATCH, build_tiny, visual_tokens
from visionrl.tools import tool_call_text, tool_schema

pytestmark = [pytest.mark.integration, pytest.mark.vision]


@dataclass(frozen=True)
class Rig:
    server: InferenceServer
    trainer: StandInTrainer
    model_dir: Path
    first: str
    second: str
    third: str
    """Names of three versions."""

    def adapter(self, name: str) -> Path:
        return self.trainer.root / "adapters" / name


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("inference")
    # The render endpoint shows what the server made of a prompt.
    job = tiny_job({"extraArgs": ["--enable-scale-out"]})
    model_dir = build_tiny(TinyModel(), job.spec.rollout.env_config, folder / "cache")
    adapters = folder / "trainer" / "adapters"
    names = [publish_adapter(model_dir, adapters, number) for number in (1, 2, 3)]
    with StandInTrainer(folder / "trainer", KEY) as trainer:
        server = InferenceServer(job, folder, trainer.url)
        _add_a_field_of_tomorrow(folder / "job.json")
        try:
            server.start()
            yield Rig(server, trainer, model_dir, *names)
        finally:
            server.kill()


def _add_a_field_of_tomorrow(path: Path) -> None:
    """As an operator writes the job that was upgraded while the server's image was not."""
    job = json.loads(path.read_text())
    job["spec"]["inference"]["fieldOfTomorrow"] = {"x": 1}
    path.write_text(json.dumps(job))


@pytest.fixture
def client(rig: Rig) -> Iterator[httpx.Client]:
    with rig.server.client() as client:
        yield client


def test_every_path_but_health_and_metrics_wants_the_key(rig: Rig) -> None:
    for key in ("", "another-key"):
        with rig.server.client(key) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/metrics").status_code == 200
            for path in ("/v1/models", "/tokenize", "/adapters", "/v1/load_lora_adapter", "/openapi.json", "/"):
                assert client.get(path).status_code == 401, path
                assert client.post(path, json={}).status_code == 401, path
            assert client.post("/v1/chat/completions", json=chat_body("base", random_frame(0))).status_code == 401


def test_headers_have_a_limit_without_a_key(rig: Rig) -> None:
    half_open = socket.create_connection(("127.0.0.1", rig.server.port), timeout=300)
    half_open.sendall(b"GET /health HTTP/1.1\r\nx:")
    megabyte = b"".join(b"x-%d: %s\r\n" % (number, b"v" * 1000) for number in range(1000))
    with socket.create_connection(("127.0.0.1", rig.server.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(64 * megabyte)
    with rig.server.client() as client:
        assert client.get("/health").status_code == 200
    with half_open, contextlib.suppress(ConnectionError):  # hung up on: a head that never ends has a deadline
        assert half_open.recv(1) == b""


def test_it_tells_which_content_it_serves_by_a_name(rig: Rig) -> None:
    path = f"{ADAPTERS_PATH}/{rig.first}"
    with rig.server.client() as client:
        complete(client, rig.first, random_frame(0))
        answer = client.get(path)
        assert client.get(f"{ADAPTERS_PATH}/{JOB_NAME}-v000099-0123456789ab").status_code == 404
        assert client.get(f"{ADAPTERS_PATH}/base").status_code == 404
    assert answer.json() == {"digest": Manifest.of_folder(rig.adapter(rig.first)).digest}
    with rig.server.client("") as client:
        assert client.get("/health").headers[SERVER_HEADER] == answer.headers[SERVER_HEADER]
        assert client.get(path).status_code == 401


def test_adapters_cannot_be_loaded_or_unloaded_from_outside(rig: Rig, client: httpx.Client) -> None:
    complete(client, rig.first, random_frame(0))
    load = {"lora_name": "mine", "lora_path": str(rig.adapter(rig.first))}
    assert client.post("/v1/load_lora_adapter", json=load).status_code == 404
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": rig.first}).status_code == 404
    assert client.post("/adapters", json={"name": "mine", "src": load["lora_path"]}).status_code == 404
    complete(client, rig.first, random_frame(0))


def test_a_frame_is_81_tokens_and_arrives_pixel_for_pixel_with_no_state_as_text(client: httpx.Client) -> None:
    from transformers import AutoTokenizer
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import decode_mm_kwargs_item

    frame = random_frame(7)
    rendered = client.post("/v1/chat/completions/render", json=chat_body("base", frame)).json()
    assert visual_tokens(TinyModel(), tiny_job().spec.rollout.env_config) == 81
    (place,) = rendered["features"]["mm_placeholders"]["image"]
    assert place["length"] == 81
    # What the vision tower is given, patch by patch, is the environment's frame.
    (item,) = rendered["features"]["kwargs_data"]["image"]
    patches = np.asarray(decode_mm_kwargs_item(item)["pixel_values"].data)
    assert patches.dtype == np.uint8
    side = 144 // PATCH
    image = patches.reshape(side, side, 3, 2, PATCH, PATCH)[:, :, :, 0]
    assert frame_hash(image.transpose(0, 3, 1, 4, 2).reshape(144, 144, 3)) == frame_hash(frame)
    # And nothing else is in the prompt than the system's words and the image.
    prompt_ids, _, _ = complete(client, "base", frame)
    assert prompt_ids == rendered["token_ids"]
    text = AutoTokenizer.from_pretrained(_model_root(client)).decode(prompt_ids)
    assert text == (
        "<|im_start|>system\nPlay Crafter.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 81
        + "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )


def _model_root(client: httpx.Client) -> str:
    return next(m["root"] for m in client.get("/v1/models").json()["data"] if m["id"] == "base")


def test_the_base_answers_with_the_ids_and_logprobs_that_training_recomputes(rig: Rig, client: httpx.Client) -> None:
    frame = random_frame(1)
    prompt_ids, token_ids, logprobs = complete(client, "base", frame)
    assert 1 <= len(token_ids) <= 13
    expected = logprobs_by_transformers(rig.model_dir, None, prompt_ids, token_ids, frame)
    np.testing.assert_allclose(logprobs, expected, atol=SEEN_WHOLE)


def test_a_new_adapter_is_fetched_by_name_and_is_what_peft_computes(rig: Rig, client: httpx.Client) -> None:
    frame = random_frame(2)
    prompt_ids, token_ids, logprobs = complete(client, rig.second, frame)
    with_it = logprobs_by_transformers(rig.model_dir, rig.adapter(rig.second), prompt_ids, token_ids, frame)
    without = logprobs_by_transformers(rig.model_dir, None, prompt_ids, token_ids, frame)
    np.testing.assert_allclose(logprobs, with_it, atol=SEEN_WHOLE)
    assert np.abs(np.subtract(logprobs, without)).max() > 0.05


def test_base_and_adapters_in_one_batch_keep_apart(rig: Rig) -> None:
    """With as many adapters as slots, and requests for all of them at once, nobody gets another's weights."""
    models = {"base": None, rig.first: rig.adapter(rig.first), rig.second: rig.adapter(rig.second)}
    asked = [(model, random_frame(seed)) for seed in range(4) for model in models]

    def ask(question: tuple[str, np.ndarray]) -> tuple[list[int], list[int], list[float]]:
        with rig.server.client() as client:
            return complete(client, *question)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    for (model, frame), (prompt_ids, token_ids, logprobs) in zip(asked, answers, strict=True):
        expected = logprobs_by_transformers(rig.model_dir, models[model], prompt_ids, token_ids, frame)
        np.testing.assert_allclose(logprobs, expected, atol=SEEN_WHOLE, err_msg=model)


def test_the_logprobs_of_a_prompt_are_computed_beside_other_requests(rig: Rig) -> None:
    """As a server that was started again is proven while episodes are played."""
    prompt = {"model": rig.second, "prompt": list(range(100, 164)), "max_tokens": 1, "prompt_logprobs": 1}

    def ask(number: int) -> int:
        with rig.server.client() as client:
            if number % 2:
                return client.post("/v1/completions", json=prompt).status_code
            return client.post("/v1/chat/completions", json=chat_body(rig.first, random_frame(number))).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(32))) == {200}


def test_many_first_requests_share_one_download(rig: Rig) -> None:
    weights = f"/adapters/{rig.third}/adapter_model.safetensors"

    def ask(seed: int) -> None:
        with rig.server.client() as client:
            complete(client, rig.third, random_frame(seed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert rig.trainer.requests[weights] == 1


def test_names_that_are_no_version_of_this_job_are_unknown(rig: Rig, client: httpx.Client) -> None:
    digest = rig.first.rpartition("-")[2]
    ours = (f"{JOB_NAME}-v000099-{digest}", f"{JOB_NAME}-v000001", f"{JOB_NAME}-v1-{digest}")
    for name in (*ours, f"other-v000001-{digest}", f"../{rig.first}", str(rig.adapter(rig.first))):
        answer = client.post("/v1/chat/completions", json=chat_body(name, random_frame(0)))
        assert answer.status_code == 404, (name, answer.text)


def test_a_trainer_that_is_away_or_sends_rubbish_costs_nobody_else(rig: Rig, client: httpx.Client) -> None:
    shutil.copytree(rig.adapter(rig.first), rig.adapter("draft"))
    late = named_by_content(rig.adapter("draft"), JOB_NAME, 12)
    for fault in ("not_ready", "corrupt", "truncated"):
        rig.trainer.fault = fault
        answer = client.post("/v1/chat/completions", json=chat_body(late, random_frame(0)))
        assert answer.status_code == 503, (fault, answer.text)
        complete(client, rig.first, random_frame(0))
    rig.trainer.fault = ""
    complete(client, late, random_frame(0))


def test_weights_that_are_not_finite_are_refused_before_the_engine_sees_them(rig: Rig, client: httpx.Client) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(rig.adapter(rig.first), rig.adapter("draft"))
    path = rig.adapter("draft") / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    name = named_by_content(rig.adapter("draft"), JOB_NAME, 13)
    answer = client.post("/v1/chat/completions", json=chat_body(name, random_frame(0)))
    assert answer.status_code == 422
    assert "not finite" in answer.text


def test_a_written_tool_call_is_a_dozen_tokens_and_keeps_its_text(rig: Rig, client: httpx.Client) -> None:
    from transformers import AutoTokenizer

    text = tool_call_text(["move_left", "do", "do", "place_table"])
    ids = AutoTokenizer.from_pretrained(rig.model_dir)(text + "<|im_end|>")["input_ids"]
    assert len(ids) == 12
    assert client.post("/detokenize", json={"model": "base", "tokens": ids[:-1]}).json()["prompt"] == text
    # The tools are offered to the server, and cost the prompt nothing.
    body = chat_body("base", random_frame(0))
    plain, _, _ = sampled(client.post("/v1/chat/completions", json=body))
    offered = body | {"tools": [tool_schema(ACTIONS, 4, "Play actions.")], "tool_choice": "auto"}
    with_tools, _, _ = sampled(client.post("/v1/chat/completions", json=offered))
    assert with_tools == plain


def test_a_server_whose_engine_dies_while_it_loads_an_adapter_ends_and_serves_the_same_name_again_with_its_store_gone(
    rig: Rig,
) -> None:
    frame = random_frame(3)
    with rig.server.client() as client:
        process = client.get("/health").headers[SERVER_HEADER]
        unseen = publish_adapter(rig.model_dir, rig.adapter(""), 5)
        engine = rig.server.engine()
        engine.suspend()
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(complete, client, unseen, frame)
            while not list(rig.server.cache.glob(f"adapters/*/{unseen}")):
                assert rig.server.runs()
                time.sleep(0.1)
            time.sleep(1.0)  # for the engine to be asked; it ends as well where it was not
            engine.kill()
            assert rig.server.wait() != 0
            assert isinstance(answer.exception(), httpx.HTTPError)
    rig.server.kill()
    shutil.rmtree(rig.server.cache / "adapters")
    rig.server.start()
    with rig.server.client() as client:
        assert client.get("/health").headers[SERVER_HEADER] != process
        prompt_ids, token_ids, logprobs = complete(client, rig.first, frame)
    expected = logprobs_by_transformers(rig.model_dir, rig.adapter(rig.first), prompt_ids, token_ids, frame)
    np.testing.assert_allclose(logprobs, expected, atol=SEEN_WHOLE)


def test_sigterm_ends_it_within_the_grace_and_its_log_never_held_the_key(rig: Rig) -> None:
    rig.server.stop()
    assert KEY not in rig.server.log.read_text(errors="replace")
