"""A trainer's side of the canary, and a server that answers like vLLM: with its own copy of the model, rounding of its
own, and the faults that it can have."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from visionrl.adapters import ADAPTERS_PATH, SERVER_HEADER, Manifest, Version
from visionrl_trainer.sync.service import StatusPublisher

if TYPE_CHECKING:
    import torch

    from visionrl_trainer.model.policy import Policy
    from visionrl_trainer.sync.weight_sync import WeightSync

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


def reported(rig: Rig) -> str | None:
    return rig.publisher.report.policy.serving


async def refused(rig: Rig, message: str) -> None:
    """The next version is not served, and the status does not say so."""
    from visionrl_trainer.sync.canary import CanaryFailed

    before = reported(rig)
    with pytest.raises(CanaryFailed, match=message):
        await rig.push()
    assert reported(rig) == before
