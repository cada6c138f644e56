"""Which weights does the server apply? A server that answers like vLLM, with its own copy of the model, rounding of its
own, and the faults that it can have."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from tests.support.inference import tiny_job
from tests.unit.trainer.test_intake import decision, response
from visionrl.adapters import ADAPTERS_PATH, SERVER_HEADER, Manifest, Version
from visionrl.rollout import RolloutResponse
from visionrl.status import TrainerReport
from visionrl_trainer.sync import inference_client, weight_sync
from visionrl_trainer.sync.service import StatusPublisher

if TYPE_CHECKING:
    import torch

    from visionrl_trainer.model.policy import Policy
    from visionrl_trainer.sync.weight_sync import WeightSync

pytestmark = pytest.mark.vision

JOB = "crafter"
ROUNDING = {"float32": 1e-6, "bfloat16": 0.005}
"""Standard deviation of what this server's logprobs differ by from exact ones: a base of this size differs by 0.007
between the engines in bfloat16."""


class Server:
    """Answers as the inference server does. ``policy`` is its own model; adapters come from the folders of ``roots``.

    ``tamper`` changes an adapter's weights as they are loaded, ``distort`` the logprobs of every answer; ``serves``
    replaces the model that is asked for.
    """

    def __init__(self, policy: Policy, dtype: str, roots: list[Path]) -> None:
        import torch

        self.policy, self.dtype, self.roots = policy, dtype, roots
        self.process = "process-1"
        self.tamper: Callable[[dict[str, torch.Tensor]], None] = lambda weights: None
        self.distort: Callable[[torch.Tensor], torch.Tensor] = lambda logprobs: logprobs
        self.serves: Callable[[str], str] = lambda model: model
        self.answers: list[httpx.Response | Callable[[], httpx.Response]] = []
        """Given first, instead of the right ones."""
        self.restarts_at = ""
        """Path of the request before which it restarts, once."""
        self.asked: list[tuple[str, str]] = []
        self.loaded: dict[str, str] = {}
        self._random = torch.Generator().manual_seed(5)

    def restart(self) -> None:
        self.restarts_at = ""
        self.process += "'"
        self.loaded.clear()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        model = body.get("model", "")
        self.asked.append((request.url.path, model))
        if self.restarts_at and request.url.path.startswith(self.restarts_at):
            self.restart()
        if self.answers:
            answer = self.answers.pop(0)
            return answer if isinstance(answer, httpx.Response) else answer()
        headers = {SERVER_HEADER: self.process}
        if request.url.path.startswith(ADAPTERS_PATH):
            return httpx.Response(
                200, json={"digest": self._digest(request.url.path.rpartition("/")[2])}, headers=headers
            )
        self._apply(self.serves(model))
        self._digest(model)
        document = self._chat(body) if request.url.path == "/v1/chat/completions" else self._prompt(body)
        return httpx.Response(200, content=json.dumps(document), headers=headers)  # NaN as Python writes it

    def _digest(self, model: str) -> str:
        """Of an adapter's content when it was loaded, which is now where it was not."""
        if model not in self.loaded and model != "base":
            self.loaded[model] = Manifest.of_folder(self._folder(self.serves(model))).digest
        return self.loaded.get(model, "")

    def _folder(self, model: str) -> Path:
        return next(root / model for root in self.roots if (root / model).is_dir())

    def _apply(self, model: str) -> None:
        """Give the policy the weights of a model by its name."""
        from safetensors.torch import load_file

        own = self.policy.adapter_weights()
        if model == "base":
            self.policy.set_adapter_weights({name: tensor * 0 for name, tensor in own.items()})
            return
        weights = load_file(self._folder(model) / "adapter_model.safetensors")
        self.tamper(weights)
        self.policy.set_adapter_weights(weights)

    def _rounded(self, logprobs: torch.Tensor) -> list[float]:
        import torch

        noise = torch.randn(logprobs.shape, generator=self._random) * ROUNDING[self.dtype]
        return self.distort(logprobs + noise).tolist()

    def _prompt(self, body: dict[str, Any]) -> dict[str, Any]:
        from visionrl_trainer.sync import probe

        values = self._rounded(probe.logprobs(self.policy, body["prompt"]))
        places = [{str(t): {"logprob": v}} for t, v in zip(body["prompt"][1:], values, strict=True)]
        return {"choices": [{"prompt_logprobs": [None, *places]}]}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        from visionrl.frames import frame_hash
        from visionrl_trainer.rollout.batch import Sample
        from visionrl_trainer.sync import image_prompt

        tokenizer, expect = self.policy.processor.tokenizer, self.policy.image_tokens(144)
        frame = image_prompt.frame(body["model"], 144)
        prompt = [
            *tokenizer.encode("Play"),
            *[expect.placeholder_id] * expect.per_image,
            *tokenizer.encode("assistant"),
        ]
        ids = tokenizer.encode("Play Crafter")
        sample = Sample(tuple(prompt), tuple(ids), (), (frame_hash(frame),), "")
        values = self._rounded(image_prompt.trained_logprobs(self.policy, sample, frame, body["temperature"]))
        content = [{"logprob": value} for value in values]
        return {"prompt_token_ids": prompt, "choices": [{"token_ids": ids, "logprobs": {"content": content}}]}


@dataclasses.dataclass
class Rig:
    """A trainer's side and a server, which share nothing but files and HTTP."""

    policy: Policy
    server: Server
    sync: WeightSync
    publisher: StatusPublisher
    number: int = 0

    def learn(self, size: float, seed: int = 0) -> None:
        """Move every weight of lora_B by ``size``, as an update does."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.policy.trainable():
                if "lora_B" in name:
                    weight.add_(size * torch.randn(weight.shape, generator=generator).sign())

    def publish(self) -> Version:
        self.number += 1
        return self.sync.store.publish(self.policy, self.number)

    async def push(self) -> Version:
        version = self.publish()
        await self.sync.push(self.policy, version)
        return version


@pytest.fixture(scope="module")
def policies(request: pytest.FixtureRequest, tiny_directory: Path) -> tuple[str, Policy, Policy]:
    """A dtype, bfloat16 unless a test says otherwise, and the trainer's and the server's model in it."""
    import torch

    from visionrl.job import Lora
    from visionrl_trainer.model.policy import Policy

    dtype = getattr(request, "param", "bfloat16")

    def load() -> Policy:
        policy = Policy.load(tiny_directory, dtype, torch.device("cpu"))
        policy.add_adapter(Lora(r=4, alpha=8), seed=0)
        return policy

    return dtype, load(), load()


@pytest.fixture
def rig(policies: tuple[str, Policy, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    from visionrl_trainer.sync.publish import AdapterStore

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


def reported(rig: Rig) -> str | None:
    return rig.publisher.report.policy.serving


async def refused(rig: Rig, message: str) -> None:
    """The next version is not served, and the status does not say so."""
    from visionrl_trainer.sync.canary import CanaryFailed

    before = reported(rig)
    with pytest.raises(CanaryFailed, match=message):
        await rig.push()
    assert reported(rig) == before


BOTH = pytest.mark.parametrize("policies", ["float32", "bfloat16"], indirect=True)


@BOTH
@pytest.mark.parametrize("size", [0.0, 5e-5, 5e-4, 0.05])
async def test_a_true_server_passes_from_the_first_update_to_large_ones(rig: Rig, size: float) -> None:
    for seed in range(3):
        rig.learn(size, seed)
        version = await rig.push()
        assert reported(rig) == version.name


async def test_the_policy_is_as_it_was_after_the_probe(rig: Rig) -> None:
    import torch

    rig.learn(0.05)
    before, banned = rig.policy.adapter_weights(), rig.policy.banned_ids
    await rig.push()
    after = rig.policy.adapter_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert rig.policy.banned_ids == banned


@BOTH
@pytest.mark.parametrize("size", [0.0, 5e-5, 0.05])
async def test_a_server_that_ignores_adapters_is_refused_however_little_the_version_changes(
    rig: Rig, size: float
) -> None:
    rig.learn(size)
    rig.server.tamper = lambda weights: [tensor.zero_() for tensor in weights.values()]  # type: ignore[assignment]
    await refused(rig, "serves other weights|does not apply adapters")


@pytest.mark.parametrize("kind", ["q_proj", "v_proj", "gate_proj", "down_proj"])
async def test_a_server_that_ignores_one_kind_of_module_is_refused(rig: Rig, kind: str) -> None:
    def tamper(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if f".{kind}." in name:
                tensor.zero_()

    rig.server.tamper = tamper
    await refused(rig, kind)


async def test_another_scale_is_refused(rig: Rig) -> None:
    def tamper(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if "lora_B" in name:
                tensor /= 2  # alpha / 2r

    rig.server.tamper = tamper
    await refused(rig, "does not apply adapters|serves other weights")


async def test_the_weights_of_another_run_are_refused_by_their_digest(rig: Rig) -> None:
    """Of the same size and number, too small for any statistic in bfloat16."""
    await rig.push()
    own = rig.policy.adapter_weights()
    rig.learn(5e-5, seed=1)
    other = rig.publish()
    rig.policy.set_adapter_weights(own)
    rig.learn(5e-5, seed=2)
    rig.server.serves = lambda model: model if "probe" in model or model == "base" else other.name
    await refused(rig, "serves content|nearer|serves other weights|other weights")


async def test_a_server_that_stays_at_the_last_version_is_refused(rig: Rig) -> None:
    rig.learn(0.02, seed=1)
    last = await rig.push()
    digest = rig.server.loaded[last.name]
    rig.learn(0.02, seed=2)
    version = rig.publish()
    rig.server.serves = lambda model: last.name if model == version.name else model
    rig.server.answers = []
    true_digest = Manifest.of_folder(rig.sync.store.folder(version)).digest

    class Lying(dict[str, str]):
        def __setitem__(self, name: str, value: str) -> None:
            super().__setitem__(name, true_digest if value == digest else value)

    rig.server.loaded = Lying(rig.server.loaded)
    from visionrl_trainer.sync.canary import CanaryFailed

    with pytest.raises(CanaryFailed, match=r"nearer|serves other weights|other weights"):
        await rig.sync.push(rig.policy, version)


async def test_another_base_model_is_refused(rig: Rig, tmp_path: Path) -> None:
    import torch

    from visionrl.job import EnvSettings, Lora, TinyModel
    from visionrl.tiny.model import build_tiny
    from visionrl_trainer.model.policy import Policy

    other = build_tiny(TinyModel(seed=9), EnvSettings(image_size=144), tmp_path)
    rig.server.policy = Policy.load(other, rig.server.dtype, torch.device("cpu"))
    rig.server.policy.add_adapter(Lora(r=4, alpha=8), seed=0)
    await refused(rig, "serves other weights")


@pytest.mark.parametrize(
    ("value", "share"), [(float("nan"), 1.0), (float("nan"), 0.01), (float("inf"), 0.01), (-1.7e308, 0.01)]
)
async def test_logprobs_that_are_no_logprobs_are_refused(rig: Rig, value: float, share: float) -> None:
    import torch

    def distort(logprobs: torch.Tensor) -> torch.Tensor:
        few = max(1, round(share * len(logprobs)))
        return torch.cat([torch.full((few,), value, dtype=torch.float64), logprobs[few:].double()])

    rig.learn(0.05)
    rig.server.distort = distort
    await refused(rig, "server")
    # Also where the server's first answers were right.
    rig.server.distort = lambda logprobs: logprobs
    await rig.push()
    rig.server.distort = distort
    await refused(rig, "server")


async def test_one_failed_check_is_repeated(rig: Rig) -> None:
    remaining = [1]

    def once(logprobs: torch.Tensor) -> torch.Tensor:
        return logprobs + 5 if remaining and remaining.pop() else logprobs

    rig.server.distort = once
    await rig.push()


async def test_a_restarted_server_is_proven_again_and_a_proven_one_is_not(rig: Rig) -> None:
    def probes() -> int:
        return sum("probe" in model for _, model in rig.server.asked)

    await rig.push()
    await rig.push()
    assert probes() == 1
    rig.server.restart()
    await rig.push()
    assert probes() == 2
    rig.server.restart()
    rig.server.tamper = lambda weights: [tensor.zero_() for tensor in weights.values()]  # type: ignore[assignment]
    await refused(rig, "server")


def played_by(process: str, version: Version) -> RolloutResponse:
    """An episode of one decision that this server answered."""
    return response([decision(server=process, model=version.name)])


async def test_a_server_that_was_restarted_since_the_last_push_is_proven_before_its_answers_are_used(rig: Rig) -> None:
    rig.learn(0.02)
    version = await rig.push()
    asked = len(rig.server.asked)
    await rig.sync.admit(played_by(rig.server.process, version))
    assert len(rig.server.asked) == asked, "what was proven is not asked for again"
    rig.server.restart()
    rig.learn(0.02, seed=1)  # the update goes on meanwhile
    await asyncio.gather(*[rig.sync.admit(played_by(rig.server.process, version)) for _ in range(8)])
    assert sum("probe" in model for _, model in rig.server.asked) == 2
    assert rig.server.loaded.keys() >= {version.name}


async def test_no_answer_of_a_restarted_server_that_ignores_adapters_is_used(rig: Rig) -> None:
    from visionrl_trainer.sync.canary import CanaryFailed

    version = await rig.push()
    rig.server.restart()
    rig.server.tamper = lambda weights: [tensor.zero_() for tensor in weights.values()]  # type: ignore[assignment]
    with pytest.raises(CanaryFailed, match="server"):
        await rig.sync.admit(played_by(rig.server.process, version))


async def test_an_answer_of_a_server_that_is_gone_before_it_was_proven_is_refused(rig: Rig) -> None:
    from visionrl_trainer.rollout.client import AnswerRejected

    version = await rig.push()
    rig.server.restart()
    gone = rig.server.process
    rig.server.restart()
    with pytest.raises(AnswerRejected, match=gone):
        await rig.sync.admit(played_by(gone, version))


async def test_while_a_restarted_server_is_away_the_status_says_so(rig: Rig) -> None:
    version = await rig.push()
    rig.server.restart()
    phases = []

    def away() -> httpx.Response:
        phases.append(rig.publisher.report.phase)
        raise httpx.ConnectError("refused")

    rig.server.answers = [away, away]
    await rig.sync.admit(played_by(rig.server.process, version))
    assert (phases, rig.publisher.report.phase) == (["Training", "WaitingForInference"], "Training")


async def test_a_server_that_restarts_in_the_middle_is_asked_again(rig: Rig) -> None:
    await rig.push()
    for path in (ADAPTERS_PATH, "/v1/chat/completions"):
        rig.server.restarts_at = path
        await rig.push()
        assert not rig.server.restarts_at


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
async def test_a_refusal_for_good_ends_at_once_with_the_servers_reason(rig: Rig, status: int) -> None:
    from visionrl.component import ConfigurationError

    reason = {"error": {"message": "adapter is refused: q_proj is [64, 4], the base model's is [128, 64]"}}
    rig.server.answers = [httpx.Response(status, json=reason)]
    with pytest.raises(ConfigurationError, match="q_proj is"):
        await rig.push()
    assert len(rig.server.asked) == 1


async def test_a_server_that_is_away_is_waited_for(rig: Rig) -> None:
    def away() -> httpx.Response:
        raise httpx.ConnectError("refused")

    rig.server.answers = [away, away, httpx.Response(503, text="the trainer is not ready"), httpx.Response(500)]
    await rig.push()
    assert "status 500" in rig.publisher.report.message


DYING = {"error": {"message": "LoRA adapter 'job-v000001-0123456789ab' was found but could not be loaded."}}


async def test_a_server_whose_engine_just_died_is_waited_for(rig: Rig) -> None:
    rig.server.answers = [httpx.Response(400, json=DYING), httpx.Response(503, text="shutting down")]
    await rig.push()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, {"error": {"message": "no such model"}}), (400, DYING)],
    ids=["unknown", "not loaded"],
)
async def test_a_server_that_does_not_serve_the_version_is_given_up_soon(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, status: int, reason: dict[str, object]
) -> None:
    monkeypatch.setattr(weight_sync, "MISSING_SECONDS", 0.05)
    rig.server.answers = [httpx.Response(status, json=reason)] * 1000
    with pytest.raises(ConnectionError, match=f"status {status}"):
        await asyncio.wait_for(rig.push(), 60)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"[" * 100_000, headers={SERVER_HEADER: "x"}),
        httpx.Response(200, json={}, headers={SERVER_HEADER: "x"}),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, content=b" " * (inference_client.MAX_ANSWER_BYTES + 1), headers={SERVER_HEADER: "x"}),
    ],
)
async def test_an_answer_that_is_none_fails_the_check(rig: Rig, answer: httpx.Response) -> None:
    rig.server.answers = [answer, answer]
    await refused(rig, "cannot be used")


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_token_ids": [10**9]},
        {"prompt_token_ids": [5, 6]},
        {"prompt_token_ids": None},
        {"choices": []},
        {"choices": [{"token_ids": [-1], "logprobs": {"content": [{"logprob": -1.0}]}}]},
        {"choices": [{"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -1.0}]}}]},
        {"choices": [{"token_ids": [5], "logprobs": None}]},
        {"choices": [{"token_ids": [], "logprobs": {"content": []}}]},
    ],
)
def test_an_answer_to_a_frame_that_cannot_be_computed_is_refused(policy: Policy, changes: dict[str, Any]) -> None:
    from visionrl_trainer.sync import image_prompt

    expect, frame = policy.image_tokens(144), image_prompt.frame("v", 144)
    answer = {
        "prompt_token_ids": [5, *[expect.placeholder_id] * expect.per_image, 6],
        "choices": [{"token_ids": [5], "logprobs": {"content": [{"logprob": -1.0}]}}],
    }
    assert image_prompt.read(answer, frame, policy).completion_ids == (5,)
    with pytest.raises(inference_client.UnusableAnswer):
        image_prompt.read(answer | changes, frame, policy)


async def test_a_policy_without_images_is_not_shown_one(rig: Rig) -> None:
    rollout = rig.sync.spec.rollout
    settings = rollout.policy_config.model_copy(update={"use_vision": False})
    rig.sync.spec = rig.sync.spec.model_copy(update={"rollout": rollout.model_copy(update={"policy_config": settings})})
    await rig.push()
    assert "/v1/chat/completions" not in {path for path, _ in rig.server.asked}


async def test_an_answer_that_never_ends_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    monkeypatch.setattr(inference_client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(weight_sync, "PATIENCE_SECONDS", 0.0)
    rig.server.answers = [lambda: httpx.Response(200, stream=Slow())] * 3
    with pytest.raises(ConnectionError, match="no complete answer"):
        await asyncio.wait_for(rig.push(), 60)


def test_an_update_below_rounding_is_told_to_be_so() -> None:
    """The measured case: one update at lr 5e-5 moves 0.010 nats, all of it the trainer's own rounding."""
    import torch

    from visionrl_trainer.sync.evidence import compare

    generator = torch.Generator().manual_seed(0)
    rounding = torch.randn(2, 400, generator=generator, dtype=torch.float64) * 0.011
    nothing = torch.zeros(400, dtype=torch.float64)
    update = compare(rounding[0], rounding[1], nothing, noise=0.011)
    assert not update.can_tell
    large = torch.randn(400, generator=generator, dtype=torch.float64) * 0.057
    assert compare(large + rounding[0], large, nothing, 0.011).is_expected
    ignored = compare(rounding[0], large, nothing, 0.011)
    assert ignored.can_tell
    assert not ignored.is_expected
    assert not compare(nothing * np.nan, large, nothing, 0.011).is_expected
