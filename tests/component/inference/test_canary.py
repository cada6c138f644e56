"""The canary against real vLLM in bfloat16, where the first versions of a run change less than rounding does."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.inference import JOB_NAME, KEY, InferenceServer, tiny_job
from tests.support.ports import free_port
from visionrl.adapters import ADAPTERS_PATH, Manifest, Version
from visionrl.job import Lora, TinyModel
from visionrl.status import TrainerReport
from visionrl.tiny.model import build_tiny

if TYPE_CHECKING:
    from visionrl_trainer.model.policy import Policy
    from visionrl_trainer.sync.weight_sync import WeightSync

pytestmark = [pytest.mark.integration, pytest.mark.vision]

JOB = tiny_job(model={"base": "tiny", "dtype": "bfloat16"})
UPDATE = 5e-5
"""What one update at a usual learning rate changes in every weight of lora_B."""


class Meddler(httpx.AsyncBaseTransport):
    """Between trainer and server: ``serves`` replaces the model of a request once the server has loaded the true one,
    ``distort`` changes the answer."""

    def __init__(self) -> None:
        self.inner = httpx.AsyncHTTPTransport()
        self.serves: Callable[[str], str] = lambda model: model
        self.distort: Callable[[str], str] = lambda answer: answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        answer = await self._ask(request, body)
        if (other := self.serves(body.get("model", ""))) != body.get("model", ""):
            answer = await self._ask(request, body | {"model": other})
        if answer.status_code != 200 or request.url.path.startswith(ADAPTERS_PATH):
            return answer
        headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
        return httpx.Response(200, headers=headers, content=self.distort(answer.text).encode())

    async def _ask(self, request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        content = json.dumps(body).encode() if body else None
        answer = await self.inner.handle_async_request(
            httpx.Request(request.method, request.url, headers=headers, content=content)
        )
        await answer.aread()
        return answer


class Rig:
    def __init__(self, policy: Policy, sync: WeightSync, meddler: Meddler) -> None:
        self.policy, self.sync, self.meddler, self.number = policy, sync, meddler, 0

    def learn(self, seed: int, size: float = UPDATE) -> Version:
        """Publish the policy after one more update."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.policy.trainable():
                if "lora_B" in name:
                    weight.add_(size * torch.randn(weight.shape, generator=generator).sign())
        self.number += 1
        return self.sync.store.publish(self.policy, self.number)

    async def refused(self, version: Version, message: str) -> None:
        from visionrl_trainer.sync.canary import CanaryFailed

        before = self.sync.publisher.report.policy.serving
        with pytest.raises(CanaryFailed, match=message):
            await self.sync.push(self.policy, version)
        assert self.sync.publisher.report.policy.serving == before


@pytest.fixture(scope="module")
def trainer_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trainer_port: int) -> Iterator[InferenceServer]:
    server = InferenceServer(JOB, tmp_path_factory.mktemp("canary"), f"http://127.0.0.1:{trainer_port}")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def rig(server: InferenceServer, trainer_port: int, tmp_path: Path) -> AsyncIterator[Rig]:
    import torch

    from visionrl_trainer.model.policy import Policy
    from visionrl_trainer.sync.publish import AdapterStore
    from visionrl_trainer.sync.service import StatusPublisher, application, serve
    from visionrl_trainer.sync.weight_sync import WeightSync

    model = build_tiny(TinyModel(), JOB.spec.rollout.env_config, server.cache)
    policy = Policy.load(model, "bfloat16", torch.device("cpu"))
    policy.add_adapter(Lora(), seed=0)
    publisher, meddler = StatusPublisher(TrainerReport(phase="Training")), Meddler()
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        serve(application(publisher, KEY), "127.0.0.1", trainer_port),
        httpx.AsyncClient(transport=meddler, base_url=server.url, headers=headers, timeout=120) as client,
    ):
        sync = WeightSync(AdapterStore(tmp_path / "adapters", JOB_NAME), client, JOB.spec, publisher)
        yield Rig(policy, sync, meddler)


async def test_a_true_server_passes_from_the_first_version_on(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "visionrl_trainer")
    for seed, size in enumerate((0.0, UPDATE, UPDATE, 0.02)):
        version = rig.learn(seed, size)
        await rig.sync.push(rig.policy, version)
        assert rig.sync.publisher.report.policy.serving == version.name
    digest, _ = await rig.sync.inference.served_digest(version.name)
    assert digest == Manifest.of_folder(rig.sync.store.folder(version)).digest
    messages = [record.message for record in caplog.records if record.name.startswith("visionrl_trainer")]
    assert sum("applies adapters" in message for message in messages) == 1
    assert "too close to base" in messages[1]  # the first version
    assert f"{version.name} serves" in messages[-1]
    assert "told apart from base and" in messages[-1]


async def test_a_server_that_ignores_adapters_is_refused_at_the_first_version(rig: Rig) -> None:
    rig.meddler.serves = lambda model: "base"
    await rig.refused(rig.learn(1), "does not apply adapters")


async def test_the_weights_of_another_run_of_this_name_are_refused(rig: Rig) -> None:
    """A server that answers with them although it has loaded the true ones, as far as answers can show it."""
    ours = rig.policy.adapter_weights()
    other = rig.learn(1, 0.02)
    rig.policy.set_adapter_weights(ours)
    version = rig.learn(2, 0.02)
    rig.meddler.serves = lambda model: other.name if model == version.name else model
    await rig.refused(version, r"serves other weights|nearer")


async def test_content_that_was_not_loaded_is_refused_by_its_digest(rig: Rig) -> None:
    """However small the difference: a folder that was changed after the server had fetched it."""
    version = rig.learn(1)
    await rig.sync.push(rig.policy, version)
    another = rig.learn(2)
    folder = rig.sync.store.folder(version)
    for path in rig.sync.store.folder(another).iterdir():
        path.replace(folder / path.name)
    await rig.refused(version, "serves content")


async def test_logprobs_that_are_not_numbers_are_refused(rig: Rig) -> None:
    rig.meddler.distort = lambda answer: re.sub(r'"logprob":\s*[-0-9.e]+', '"logprob": NaN', answer)
    await rig.refused(rig.learn(1), "nan nats")
