"""A real tiny policy, built once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.support.canary import Rig
    from visionrl_trainer.model.policy import Policy
    from visionrl_trainer.rollout.batch import Sample

IMAGE_SIZE = 144


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from visionrl.job import EnvSettings, TinyModel
    from visionrl.tiny.model import build_tiny

    return build_tiny(TinyModel(), EnvSettings(image_size=IMAGE_SIZE), tmp_path_factory.mktemp("models"))


def with_adapter(tiny_directory: Path, dtype: str) -> Policy:
    import torch

    from visionrl.job import Lora
    from visionrl_trainer.model.policy import Policy

    loaded = Policy.load(tiny_directory, dtype, torch.device("cpu"))
    loaded.add_adapter(Lora(r=4, alpha=8), seed=0)
    return loaded


@pytest.fixture
def policy(tiny_directory: Path) -> Policy:
    return with_adapter(tiny_directory, "float32")


@pytest.fixture
def frames() -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, 256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8) for _ in range(4)]


@pytest.fixture
def samples(policy: Policy, frames: list[np.ndarray]) -> list[Sample]:
    """Four decisions of different lengths on four frames."""
    from visionrl.crafter import ACTIONS
    from visionrl.frames import frame_hash
    from visionrl.tools import tool_call_text
    from visionrl_trainer.rollout.batch import Sample

    tokenizer = policy.processor.tokenizer
    prompt = tokenizer.encode(
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 81
        + "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    return [
        Sample(
            prompt_ids=tuple(prompt),
            completion_ids=(*tokenizer.encode(tool_call_text(ACTIONS[: n + 1])), tokenizer.eos_token_id),
            logprobs=(),
            images=(frame_hash(frame),),
            model="crafter-v000000-0123456789ab",
        )
        for n, frame in enumerate(frames)
    ]


# --- the canary


@pytest.fixture(scope="module")
def policies(request: pytest.FixtureRequest, tiny_directory: Path) -> tuple[str, Policy, Policy]:
    """A dtype, bfloat16 unless a test says otherwise, and the trainer's and the server's model in it."""
    dtype = getattr(request, "param", "bfloat16")
    return dtype, with_adapter(tiny_directory, dtype), with_adapter(tiny_directory, dtype)


@pytest.fixture
def rig(policies: tuple[str, Policy, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    import httpx

    from tests.support.canary import JOB, Rig, Server
    from tests.support.inference import tiny_job
    from visionrl.status import TrainerReport
    from visionrl_trainer.sync import weight_sync
    from visionrl_trainer.sync.publish import AdapterStore
    from visionrl_trainer.sync.service import StatusPublisher

    monkeypatch.setattr(weight_sync, "POLL_SECONDS", 0.01)
    dtype, policy, server_policy = policies
    initial = policy.adapter_weights()
    server = Server(server_policy, dtype, [tmp_path / "adapters", tmp_path / "probe"])
    client = httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://inference")
    spec = tiny_job(model={"base": "tiny", "dtype": dtype}).spec
    publisher = StatusPublisher(TrainerReport(phase="Training"))
    sync = weight_sync.WeightSync(AdapterStore(tmp_path / "adapters", JOB), client, spec, publisher)
    yield Rig(policy, server, sync, publisher)
    policy.set_adapter_weights(initial)
