"""The server that samples in vLLM's place: its prompts, what it samples, and the logprobs that it tells."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.inference import chat_body, make_adapter, random_frame, tiny_job
from tests.support.sampling_inference import SamplingEngine
from visionrl.frames import frame_hash
from visionrl.job import EnvSettings, TinyModel
from visionrl.tiny.model import build_tiny
from visionrl.tools import tool_schema
from visionrl_trainer.rollout.batch import Sample

pytestmark = pytest.mark.vision

TOOLS = [tool_schema(["do", "noop"], 4, "Play.")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(TinyModel(), EnvSettings(image_size=144), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        make_adapter(base, folder / str(seed), seed)
    return folder / "1", folder / "2"


@pytest.fixture(scope="module")
def engine(base: Path) -> SamplingEngine:
    return SamplingEngine(tiny_job(model={"base": "tiny", "dtype": "float32", "lora": {"r": 8, "alpha": 16}}), base)


def ask(engine: SamplingEngine, *asked: tuple[dict[str, Any], Path]) -> list[dict[str, Any]]:
    """The answers to requests that come at once."""

    async def all_at_once() -> list[dict[str, Any]]:
        engine.__dict__.update(_waiting=asyncio.Queue(), _sampling=None)  # of this loop
        return await asyncio.gather(*(engine.chat(body, adapter) for body, adapter in asked))

    return asyncio.run(all_at_once())


def body(frame: np.ndarray, **more: Any) -> dict[str, Any]:
    return chat_body("version", frame, tools=TOOLS, **more)


def ids(answer: dict[str, Any]) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]


def trained(
    engine: SamplingEngine, answer: dict[str, Any], frame: np.ndarray, adapter: Path, temperature: float
) -> Any:
    """The trainer's logprobs of what was sampled, and its entropy there."""
    policy, digest = engine.policy, frame_hash(frame)
    sample = Sample(tuple(answer["prompt_token_ids"]), tuple(ids(answer)), (), (digest,), "version")
    policy.load_adapter(adapter)
    with torch.no_grad():
        features = {digest: policy.encode_images([frame])[0]}
        return policy.logprobs([sample], features, temperature)


def test_a_prompt_is_what_the_processor_makes_of_it(engine: SamplingEngine, adapters: tuple[Path, Path]) -> None:
    frame = random_frame(0)
    asked = body(frame)
    messages = [asked["messages"][0], {"role": "user", "content": [{"type": "image"}]}]
    text = engine.policy.processor.apply_chat_template(
        messages, tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    expected = engine.policy.processor(text=[text], images=[Image.fromarray(frame)])["input_ids"][0]
    assert list(engine.read(asked, adapters[0]).prompt) == list(expected)


def test_each_row_of_a_batch_has_the_trainers_logprobs(engine: SamplingEngine, adapters: tuple[Path, Path]) -> None:
    """Whatever came with it: other adapters, temperatures, prompts of another layout."""
    banned = {str(token): -100 for token in sorted(engine.policy.banned_ids)}
    asked = []
    for number, temperature in enumerate((1.0, 0.7, 0.0, 1.0, 1.3, 1.0)):
        frame = random_frame(number)
        asked.append(
            (frame, temperature, adapters[number % 2], body(frame, temperature=temperature, logit_bias=banned))
        )
    asked[3][3]["messages"].pop(0)
    for (frame, temperature, adapter, _), answer in zip(
        asked, ask(engine, *((each[3], each[2]) for each in asked)), strict=True
    ):
        expected_T, _ = trained(engine, answer, frame, adapter, temperature)
        assert logprobs(answer) == pytest.approx(expected_T.tolist(), abs=2e-5)
        assert not set(ids(answer)) & engine.policy.banned_ids


def test_temperature_0_is_greedy(engine: SamplingEngine, adapters: tuple[Path, Path]) -> None:
    frame = random_frame(1)
    first, second = ask(engine, *[(body(frame, temperature=0.0), adapters[0])] * 2)
    assert ids(first) == ids(second)
    likeliest = ids(first)[0]
    asked = body(frame, temperature=0.0, logit_bias={str(likeliest): -100})
    [answer] = ask(engine, (asked, adapters[0]))
    assert ids(answer)[0] != likeliest


def test_an_answer_ends_at_the_end_of_a_turn_or_at_its_limit(
    engine: SamplingEngine, adapters: tuple[Path, Path]
) -> None:
    eos = engine.policy.processor.tokenizer.eos_token_id
    frame = random_frame(2)
    ended, cut = ask(
        engine,
        (body(frame, logit_bias={str(eos): 100}), adapters[0]),
        (body(frame, logit_bias={str(eos): -100}, max_tokens=3), adapters[0]),
    )
    assert (ids(ended), ended["choices"][0]["finish_reason"]) == ([eos], "stop")
    assert ended["choices"][0]["message"]["content"] == ""
    assert (len(ids(cut)), cut["choices"][0]["finish_reason"]) == (3, "length")
    assert cut["usage"]["total_tokens"] == len(cut["prompt_token_ids"]) + 3


def test_tokens_are_drawn_from_the_distribution_that_is_told(
    engine: SamplingEngine, adapters: tuple[Path, Path]
) -> None:
    """The mean surprise of many first tokens is the entropy there."""
    frame = random_frame(3)
    answers = ask(engine, *[(body(frame, max_tokens=1), adapters[1])] * 400)
    _, entropy_T = trained(engine, answers[0], frame, adapters[1], 1.0)
    surprise = -np.array([logprobs(answer)[0] for answer in answers])
    assert surprise.mean() == pytest.approx(entropy_T[0].item(), abs=5 * surprise.std() / 20)


def test_a_version_is_served_again_exactly(engine: SamplingEngine, adapters: tuple[Path, Path]) -> None:
    asked = body(random_frame(4), temperature=0.0)
    answers = [ask(engine, (asked, adapters[number]))[0] for number in (0, 1, 0)]
    assert logprobs(answers[0]) == logprobs(answers[2])
    assert logprobs(answers[0]) != logprobs(answers[1])
