"""The loop that everything else is built around, with real vLLM in it: sample, learn, publish, sample again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from tests.support.inference import JOB_NAME, KEY, InferenceServer, chat_body, random_frame, sampled, tiny_job
from tests.support.ports import free_port
from visionrl.frames import frame_hash
from visionrl.job import Algorithm, Lora, TinyModel
from visionrl.status import TrainerReport
from visionrl.tiny.model import build_tiny

if TYPE_CHECKING:
    from visionrl_trainer.model.policy import ImageFeatures, Policy
    from visionrl_trainer.rollout.batch import Sample

pytestmark = [pytest.mark.integration, pytest.mark.vision]

ITERATIONS, ANSWERS = 3, 48
ARMS, REWARDED = range(100, 108), 104
"""Tokens that may be sampled, and the first token that earns a reward."""
FRAME = random_frame(3)


@pytest.fixture(scope="module")
def trainer_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trainer_port: int) -> Iterator[InferenceServer]:
    folder = tmp_path_factory.mktemp("loop")
    server = InferenceServer(tiny_job(), folder, f"http://127.0.0.1:{trainer_port}")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
async def test_a_rewarded_answer_becomes_likelier_from_version_to_version(
    loss: str, server: InferenceServer, trainer_port: int, tmp_path: Path
) -> None:
    import torch

    from visionrl_trainer.algo.optim import adapter_optimizer
    from visionrl_trainer.algo.update import encode, update
    from visionrl_trainer.model.policy import Policy
    from visionrl_trainer.rollout.batch import Sample
    from visionrl_trainer.sync.publish import AdapterStore
    from visionrl_trainer.sync.service import StatusPublisher, application, serve
    from visionrl_trainer.sync.weight_sync import WeightSync

    spec = tiny_job(algorithm=Algorithm(loss=loss, clip_low=0.2, clip_high=0.2).model_dump(by_alias=True)).spec  # type: ignore[arg-type]
    directory = build_tiny(TinyModel(), spec.rollout.env_config, server.cache / "models")
    policy = Policy.load(directory, "float32", torch.device("cpu"))
    policy.add_adapter(Lora(), seed=0)
    policy.ban(token for token in range(policy.model.config.text_config.vocab_size) if token not in ARMS)
    optimizer = adapter_optimizer(policy.trainable(), 5e-3, 0.0)
    publisher = StatusPublisher(TrainerReport(phase="Training"))
    store = AdapterStore(tmp_path / "adapters", JOB_NAME)
    chances = []

    async with (
        serve(application(publisher, KEY), "127.0.0.1", trainer_port),
        httpx.AsyncClient(
            base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120, trust_env=False
        ) as inference,
    ):
        sync = WeightSync(store, inference, spec, publisher)
        for iteration in range(ITERATIONS):
            version = await asyncio.to_thread(store.publish, policy, iteration)
            report = await sync.push(policy, version)
            assert report.difference <= 1e-4
            assert report.noise <= 1e-4

            samples = await answers(inference, version.name, sorted(policy.banned_ids))
            rewarded = [float(sample.completion_ids[0] == REWARDED) for sample in samples]
            advantages = np.array(rewarded) - np.mean(rewarded)
            samples = [
                Sample(s.prompt_ids, s.completion_ids, s.logprobs, s.images, s.model, float(advantage))
                for s, advantage in zip(samples, advantages, strict=True)
            ]
            frames = {frame_hash(FRAME): FRAME}
            image_features = encode(policy, samples, frames)
            chances.append(chance_of_reward(policy, samples[0].prompt_ids, image_features))
            stats = update(policy, optimizer, samples, frames, spec, torch.Generator().manual_seed(iteration))
            assert stats.mismatch_max is None or stats.mismatch_max <= 1e-4
            assert stats.masked_rate == 0
    chances.append(chance_of_reward(policy, samples[0].prompt_ids, image_features))
    # Answers are drawn anew in every run. Random weights of this size reach a probability of 0.35, and near it the
    # gradient is noise, which Adam makes a whole step of: so few and small steps (0.10, 0.23, 0.33, 0.34).
    assert all(chance > chances[0] for chance in chances[1:]), chances
    assert chances[-1] > 2 * chances[0]


async def answers(inference: httpx.AsyncClient, version: str, banned: Sequence[int]) -> list[Sample]:
    """Two-token answers to one frame, as the task app would ask for them."""
    from visionrl_trainer.rollout.batch import Sample

    body = chat_body(version, FRAME, max_tokens=2, logit_bias={str(token): -100 for token in banned})
    replies = await asyncio.gather(*(inference.post("/v1/chat/completions", json=body) for _ in range(ANSWERS)))
    return [
        Sample(tuple(prompt), tuple(ids), tuple(logprobs), (frame_hash(FRAME),), version)
        for prompt, ids, logprobs in map(sampled, replies)
    ]


def chance_of_reward(policy: Policy, prompt_ids: tuple[int, ...], image_features: Mapping[str, ImageFeatures]) -> float:
    """Probability, under the trainer's policy, that the first token is the rewarded one."""
    import torch

    from visionrl_trainer.rollout.batch import Sample

    with torch.no_grad():
        sample = Sample(prompt_ids, (REWARDED,), (), (frame_hash(FRAME),), "m")
        return float(policy.logprobs([sample], image_features, 1.0)[0].exp())
