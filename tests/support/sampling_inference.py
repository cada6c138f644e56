"""An inference server in place of vLLM that really samples: transformers' forward pass with its KV cache, in batches.

``python -m tests.support.sampling_inference`` with the environment of the inference component;
:mod:`tests.support.sampling_run` runs a job with it. Requests that wait together and have the same adapter and the same
layout of their prompt are one batch: no row is padded, so no attention mask is needed. Weights are the base's with the
version's adapter added to them, computed once a version.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from transformers import DynamicCache

from tests.support.exact_inference import Engine, chat_completion, frames, serve
from visionrl.job import Job
from visionrl_trainer.model.policy import Policy, served_temperature
from visionrl_trainer.rollout.batch import Frame, Sample
from visionrl_trainer.sft.teacher import Demonstration
from visionrl_trainer.sft.tokens import Tokens

logger = logging.getLogger(__name__)

LARGEST_BATCH = 512
QUIET_SECONDS, LONGEST_WAIT_SECONDS = 0.004, 0.03
"""A batch begins when no request has come for so long, or after so long. Without it, the first of many requests would
be a batch of its own, every time."""
LEAST_NOISE = 1e-8
"""Below the least that a float32 drawn at random is, 0 excepted, which would draw a token that is banned."""


@dataclass(frozen=True)
class Request:
    """A chat completion to sample."""

    model: str
    adapter: Path
    prompt: tuple[int, ...]
    frames: tuple[Frame, ...]
    bias: tuple[tuple[int, float], ...]
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Completion:
    """What was sampled; the last token is the one that ended it, if one did."""

    ids: list[int]
    logprobs: list[float]
    stopped: bool


class SamplingEngine(Engine):
    """Samples with one adapter at a time."""

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __init__(self, job: Job, base: Path) -> None:
        super().__init__(job, base)
        self.merged = Policy.load(base, job.spec.model.dtype, self.device)
        """Its weights are those of the version that samples."""
        self.served: Path | None = None
        tokenizer, configured = self.policy.processor.tokenizer, self.policy.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        self.eos_E = torch.tensor(sorted({tokenizer.eos_token_id, *ends} - {None}), device=self.device)
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._waiting: asyncio.Queue[tuple[Request, asyncio.Future[Completion]]] = asyncio.Queue()
        self._sampling: asyncio.Task[None] | None = None

    # --- requests

    async def chat(self, body: dict[str, Any], adapter: Path) -> dict[str, Any]:
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._sample_for_ever())
        request = await asyncio.to_thread(self.read, body, adapter)
        answered = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((request, answered))
        found: Completion = await answered
        text = self.policy.processor.tokenizer.decode(found.ids, skip_special_tokens=True)
        end = "stop" if found.stopped else "length"
        return chat_completion(request.model, request.prompt, found.ids, found.logprobs, text, end)

    def read(self, body: dict[str, Any], adapter: Path) -> Request:
        """The request as the model takes it."""
        return Request(
            body["model"],
            adapter,
            self._prompt(body["messages"], body.get("tools")),
            tuple(frames(body)),
            tuple((int(token), float(bias)) for token, bias in body.get("logit_bias", {}).items()),
            float(body.get("temperature", 1.0)),
            int(body["max_tokens"]),
        )

    def _prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> tuple[int, ...]:
        """Ids of the rendered messages, with a placeholder for each visual token; those of equal ones are kept."""
        shown = tuple(message | {"content": _without_pixels(message["content"])} for message in messages)
        key = json.dumps([shown, tools])
        if key not in self._prompts:
            tokens = Tokens(self.policy, tools, self.image.per_image)
            self._prompts[key] = tokens.sample(Demonstration(shown, (), "")).prompt_ids
        return self._prompts[key]

    # --- batches

    async def _sample_for_ever(self) -> None:
        while True:
            waiting = await self._gather()
            batches: dict[Any, list[tuple[Request, asyncio.Future[Completion]]]] = {}
            for request, answered in waiting:
                key = request.adapter, self._layout(request.prompt)
                batches.setdefault(key, []).append((request, answered))
            for batch in batches.values():
                await self._answer([request for request, _ in batch], [answered for _, answered in batch])

    async def _gather(self) -> list[tuple[Request, asyncio.Future[Completion]]]:
        """All requests that wait, once there is one."""
        waiting, quiet = [await self._waiting.get()], False
        latest = time.monotonic() + LONGEST_WAIT_SECONDS
        while not quiet and len(waiting) < LARGEST_BATCH and time.monotonic() < latest:
            await asyncio.sleep(QUIET_SECONDS)
            quiet = self._waiting.empty()
            while not self._waiting.empty() and len(waiting) < LARGEST_BATCH:
                waiting.append(self._waiting.get_nowait())
        return waiting

    async def _answer(self, requests: list[Request], answered: list[asyncio.Future[Completion]]) -> None:
        began = time.monotonic()
        try:
            found = await asyncio.to_thread(self.generate, requests)
        except Exception as error:
            logger.exception("a batch of %d failed", len(requests))
            for future in answered:
                if not future.done():
                    future.set_exception(error)
            return
        for future, completion in zip(answered, found, strict=True):
            if not future.done():  # whoever asked may have hung up
                future.set_result(completion)
        tokens = sum(len(completion.ids) for completion in found)
        prompt, seconds = len(requests[0].prompt), time.monotonic() - began
        logger.info("sampled %d rows of %d tokens, %d tokens in %.4f s", len(requests), prompt, tokens, seconds)

    def _layout(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Its length and the places of its visual tokens: what positions depend on."""
        return len(prompt), *(place for place, token in enumerate(prompt) if token == self.image.placeholder_id)

    # --- sampling

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete N prompts of one layout with one adapter."""
        with self._lock:
            self._serve(requests[0].adapter)
            longest = max(request.max_tokens for request in requests)
            ids_NT, logprobs_NT = self._decode(requests, longest)
        ends_NT = torch.isin(ids_NT, self.eos_E.cpu())
        found = []
        for request, ids, logprobs, ends in zip(
            requests, ids_NT.tolist(), logprobs_NT.tolist(), ends_NT.tolist(), strict=True
        ):
            length = min(ends.index(True) + 1 if True in ends else len(ids), request.max_tokens)
            found.append(Completion(ids[:length], logprobs[:length], ends[length - 1]))
        return found

    def _decode(self, requests: Sequence[Request], longest: int) -> tuple[Tensor, Tensor]:
        """Sampled ids and their logprobs, both [N, T], on the CPU; what follows an end means nothing."""
        model, rows = self.merged.model, len(requests)
        language_model, length = model.model.language_model, len(requests[0].prompt)
        bias_NV, temperature_N1, greedy_N = self._sampling_of(requests)
        continued = Sample(requests[0].prompt, (0,) * longest, (), (), "")
        positions_3NP = self.merged.collate([continued]).positions_3P[:, None].expand(-1, rows, -1)
        embeds_NLH, visual_NL, deepstack = self._prefill(requests)
        cache = DynamicCache(config=language_model.config)
        output = language_model(
            inputs_embeds=embeds_NLH,
            position_ids=positions_3NP[..., :length],
            visual_pos_masks=visual_NL,
            deepstack_visual_embeds=deepstack,
            past_key_values=cache,
            use_cache=True,
        )
        ids, logprobs = [], []
        ended_N = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for place in range(length, length + longest):
            logits_NV = model.lm_head(output.last_hidden_state[:, -1]).float() + bias_NV
            logprobs_NV = (logits_NV / temperature_N1).log_softmax(dim=-1)
            noise_NV = torch.empty_like(logprobs_NV).exponential_().clamp_min_(LEAST_NOISE)
            drawn_N = (logprobs_NV - noise_NV.log()).argmax(dim=-1)  # Gumbel's trick
            ids_N = torch.where(greedy_N, logits_NV.argmax(dim=-1), drawn_N)
            ids.append(ids_N)
            logprobs.append(logprobs_NV.gather(1, ids_N[:, None])[:, 0])
            ended_N |= torch.isin(ids_N, self.eos_E)
            if ended_N.all() or place == length + longest - 1:
                break
            output = language_model(
                inputs_embeds=language_model.embed_tokens(ids_N[:, None]),
                position_ids=positions_3NP[..., place : place + 1],
                past_key_values=cache,
                use_cache=True,
            )
        return torch.stack(ids, dim=1).cpu(), torch.stack(logprobs, dim=1).cpu()

    def _prefill(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """Embeddings [N, L, H] with the frames' features in their places, those places [N, L], and what deepstack adds
        there."""
        ids_NL = torch.tensor([request.prompt for request in requests]).to(self.device)
        embeds_NLH = self.merged.model.model.language_model.embed_tokens(ids_NL)
        seen = [frame for request in requests for frame in request.frames]
        if not seen:
            return embeds_NLH, None, None
        features = self.merged.encode_images(seen)
        visual_NL = ids_NL == self.image.placeholder_id
        seen_VH = torch.cat([each.embeds for each in features]).to(embeds_NLH.dtype)
        embeds_NLH = embeds_NLH.masked_scatter(visual_NL[..., None], seen_VH)
        layers = zip(*(each.deepstack for each in features), strict=True)
        return embeds_NLH, visual_NL, [torch.cat(layer) for layer in layers]

    def _sampling_of(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """Bias [N, V], temperature [N, 1] and which rows are greedy [N]."""
        bias_V = {bias: torch.zeros(self.image.vocabulary) for bias in {request.bias for request in requests}}
        for bias, row_V in bias_V.items():
            for token, value in bias:
                row_V[token] = value
        temperatures = [served_temperature(request.temperature) for request in requests]
        greedy = [request.temperature == 0 for request in requests]
        return (
            torch.stack([bias_V[request.bias] for request in requests]).to(self.device),
            torch.tensor(temperatures, device=self.device)[:, None],
            torch.tensor(greedy, device=self.device),
        )

    def _serve(self, adapter: Path) -> None:
        """Make the merged weights those of a version."""
        if adapter == self.served:
            return
        self.policy.load_adapter(adapter)
        for name, module in self.policy.model.named_modules():
            if isinstance(module, Linear):
                base: Any = module.get_base_layer()
                merged = self.merged.model.get_submodule(name)
                merged.weight.copy_(base.weight + module.get_delta_weight("default"))
        self.served = adapter


def _without_pixels(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A message's content as the chat template takes it."""
    if isinstance(content, str):
        return content
    return [{"type": "image"} if part["type"] == "image_url" else part for part in content]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    serve(SamplingEngine)
