"""An inference server in place of vLLM: the trainer's own forward pass, so its logprobs are exact. Starts in seconds.

``python -m tests.support.exact_inference`` with the environment of the inference component. Base model, adapters by
name, the key and the server's identifier are those of the real component; only the engine differs. Its policy is a
random one: each response calls the tool with random actions, and its token ids are random too.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from visionrl.adapters import ADAPTERS_PATH
from visionrl.component import ComponentContext
from visionrl.frames import decode_png, frame_hash
from visionrl.job import Job
from visionrl.tools import tool_call_text
from visionrl_inference.adapters.resolver import AdapterSource
from visionrl_inference.adapters.store import Store
from visionrl_inference.base_model import resolve_base_model
from visionrl_inference.fetch import FetchError, trainer_client
from visionrl_inference.guard import SERVER_VARIABLE, Guard
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample

ACTIONS = ("move_left", "move_right", "move_up", "move_down", "do", "noop")
BEGIN, END = 7, 8
"""Any token before and after the frame."""
COMPLETION_IDS, COMPLETION_TOKENS = range(100, 140), 3
BASE = "base"


class Engine:
    """One policy whose adapter is replaced from request to request."""

    device = torch.device("cpu")

    def __init__(self, job: Job, base: Path) -> None:
        self.policy = Policy.load(base, job.spec.model.dtype, self.device)
        self.policy.add_adapter(job.spec.model.lora, seed=0)
        self.image = self.policy.image_tokens(job.spec.rollout.env_config.image_size)
        self._lock = threading.Lock()

    async def chat(self, body: dict[str, Any], adapter: Path) -> dict[str, Any]:
        """A chat completion for the last frame of the request."""
        return await asyncio.to_thread(self._chat, body, adapter)

    def _chat(self, body: dict[str, Any], adapter: Path) -> dict[str, Any]:
        frame = frames(body)[-1]
        digest = frame_hash(frame)
        prompt = (BEGIN, *[self.image.placeholder_id] * self.image.per_image, END)
        completion = tuple(random.choices(COMPLETION_IDS, k=COMPLETION_TOKENS))
        sample = Sample(prompt, completion, (), (digest,), body["model"])
        with self._lock, torch.no_grad():
            self.policy.load_adapter(adapter)
            features = {digest: self.policy.encode_images([frame])[0]}
            logprobs = self.policy.logprobs([sample], features, body.get("temperature", 1.0))[0].tolist()
        return chat_completion(
            body["model"], prompt, completion, logprobs, tool_call_text(random.choices(ACTIONS, k=4)), "stop"
        )

    def prompt_logprobs(self, body: dict[str, Any], adapter: Path | None) -> dict[str, Any]:
        """A completion with the logprobs of its prompt, of which no token is banned."""
        ids = body["prompt"]
        sample = Sample(tuple(ids[:1]), tuple(ids[1:]), (), (), body["model"])
        with self._lock, torch.no_grad():
            banned = self.policy.banned_ids
            self.policy.ban(())
            try:
                if adapter is None:
                    with self.policy.without_adapter():
                        logprobs = self.policy.logprobs([sample], {}, 1.0)[0].tolist()
                else:
                    self.policy.load_adapter(adapter)
                    logprobs = self.policy.logprobs([sample], {}, 1.0)[0].tolist()
            finally:
                self.policy.ban(banned)
        places = [{str(token): {"logprob": logprob}} for token, logprob in zip(ids[1:], logprobs, strict=True)]
        return {"model": body["model"], "choices": [{"index": 0, "text": "", "prompt_logprobs": [None, *places]}]}


def frames(body: dict[str, Any]) -> list[Frame]:
    """The frames of a request, in the order of its messages."""
    parts = [
        part for message in body["messages"] if not isinstance(message["content"], str) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [decode_png(base64.b64decode(url.partition(",")[2])) for url in urls]


def chat_completion(
    model: str,
    prompt: Sequence[int],
    completion: Sequence[int],
    logprobs: Sequence[float],
    text: str,
    finish_reason: str,
) -> dict[str, Any]:
    """The answer to a chat request."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
        "token_ids": completion,
        "logprobs": {"content": [{"logprob": logprob} for logprob in logprobs]},
    }
    counts = {"prompt_tokens": len(prompt), "completion_tokens": len(completion)}
    usage = {**counts, "total_tokens": sum(counts.values())}
    return {"model": model, "choices": [choice], "prompt_token_ids": prompt, "usage": usage}


def application(engine: Engine, source: AdapterSource) -> Starlette:
    """The routes of an inference server that the trainer and the task app use."""

    async def adapter(name: str) -> Path:
        """The folder of an adapter."""
        try:
            folder = await source.folder(name)
        except FetchError as error:
            raise HTTPException(503, str(error)) from error
        if folder is None:
            raise HTTPException(404, f"no adapter {name}")
        return folder

    async def health(request: Request) -> Response:
        return Response("ok")

    async def chat(request: Request) -> Response:
        body = await request.json()
        return JSONResponse(await engine.chat(body, await adapter(body["model"])))

    async def complete(request: Request) -> Response:
        body = await request.json()
        folder = None if body["model"] == BASE else await adapter(body["model"])
        return JSONResponse(await asyncio.to_thread(engine.prompt_logprobs, body, folder))

    async def content(request: Request) -> Response:
        await adapter(name := request.path_params["name"])
        return JSONResponse({"digest": source.digests[name]})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route(f"{ADAPTERS_PATH}/{{name}}", content),
        ]
    )


def serve(engine_of: Callable[[Job, Path], Engine]) -> None:
    """Serve the engine that is made of the job and its base model."""
    torch.set_num_threads(1)
    context = ComponentContext.from_environment()
    job = context.job()
    trainer = functools.partial(trainer_client, context.trainer_url, context.key)
    engine = engine_of(job, resolve_base_model(job, context.cache_dir, trainer))
    source = AdapterSource(job.name, Store(context.cache_dir / "adapters"), trainer, check=lambda folder: None)
    os.environ[SERVER_VARIABLE] = secrets.token_hex(8)
    app = Guard(application(engine, source))
    # An update takes longer than uvicorn's own limit for idle connections; vLLM's is the same as here.
    uvicorn.run(app, host=context.host, port=context.port, log_level="warning", timeout_keep_alive=120)


if __name__ == "__main__":
    serve(Engine)
