"""The vLLM plugin (entry point ``vllm.endpoint_plugins``, loaded in the API servers' processes alone).

vLLM calls :meth:`AdapterPlugin.attach_router` before it looks for LoRA resolvers and :meth:`AdapterPlugin.init_state`
when its model list exists: the two moments that adapters by name need. Its one route tells what an adapter's name
stands for.

A server may have several such processes before its one engine. Each fetches adapters for itself, into a folder of its
own, and none knows what another has loaded: a name means the same content and the same number to all of them.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import uvicorn.config
from fastapi import FastAPI, HTTPException
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from visionrl.adapters import ADAPTERS_PATH
from visionrl.component import ComponentContext
from visionrl.hang import watch
from visionrl_inference.adapters.check import AdapterError, check_adapter, weight_shapes
from visionrl_inference.adapters.resolver import AdapterSource
from visionrl_inference.adapters.retire import Retirement
from visionrl_inference.adapters.store import Store
from visionrl_inference.fetch import FetchError, trainer_client
from visionrl_inference.vllm_args import adapters_in_use
from visionrl_inference.vllm_serve import end_hung_server

SILENCE_SECONDS = 10.0
"""Longest pause in an answer of the trainer's."""

SHUTDOWN_SECONDS = 5.0
"""What vLLM may take to shut down by itself."""
EXIT_FAILED = 1

logger = logging.getLogger("vllm.visionrl")


class TrainerResolver(LoRAResolver):
    """vLLM's resolver interface over an :class:`AdapterSource`."""

    def __init__(self, source: AdapterSource) -> None:
        self.source = source

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter as vLLM loads it; ``None`` becomes vLLM's 404. vLLM turns other exceptions into 500, so those
        that say whom to blame are raised as HTTP errors: 503 try again, 422 the adapter is no good."""
        try:
            folder = await self.source.folder(lora_name)
        except FetchError as error:
            raise HTTPException(503, f"adapter {lora_name} could not be fetched: {error}") from error
        except OSError as error:
            raise HTTPException(503, f"adapter {lora_name} could not be stored: {error}") from error
        except AdapterError as error:
            raise HTTPException(422, f"adapter {lora_name} is refused: {error}") from error
        if folder is None:
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # numbered when it is added


class AdapterPlugin:
    """The entry point's factory. Reads what every component gets: ``VISIONRL_JOB``, ``VISIONRL_TRAINER_URL`` and so
    on."""

    name = "visionrl_adapters"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.context = ComponentContext.from_environment()
        self.job = self.context.job()

    def attach_router(self, app: FastAPI) -> None:
        _bound_connections()
        arguments = app.state.args
        self.source = AdapterSource(
            self.job.name,
            Store(self.context.cache_dir / "adapters"),
            trainer=functools.partial(trainer_client, self.context.trainer_url, self.context.key, SILENCE_SECONDS),
            check=functools.partial(
                check_adapter, base=weight_shapes(Path(arguments.model)), max_rank=arguments.max_lora_rank
            ),
        )
        LoRAResolverRegistry.register_resolver(self.name, TrainerResolver(self.source))
        app.add_api_route(f"{ADAPTERS_PATH}/{{name}}", self.content, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        # The routes were attached, or not, before this: now only the resolver is switched on. vLLM forbids it with
        # several API servers, because each counts its adapters for itself.
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        number_by_name(engine_client)
        self.server = VllmServer(engine_client, state.openai_serving_models)
        retirement = Retirement(self.server, self.source.store, keep=adapters_in_use(self.job))
        watch(asyncio.get_running_loop(), self.server.has_work, end_hung_server)
        self.server.end_with_its_engine()
        self._sweeping = asyncio.create_task(retirement.run())  # a task lives as long as its reference

    async def content(self, name: str) -> dict[str, str]:
        """``GET /visionrl/adapters/NAME``: the digest of the content that is served under this name, loaded now where
        no request asked this process for it before."""
        await self.server.load(name)
        return {"digest": self.source.digests[name]}


def number_by_name(engine_client: Any) -> None:
    """Make the engine know each adapter by a number that follows from its name.

    The engine keeps adapters by number, and vLLM's API servers count: the first adapter of each is 1, whichever it is.
    By name, one number means one content, in all processes. It has 31 bits (model runner V2 keeps it in an int32): two
    of the few adapters that are loaded at once share one with a probability of 5e-10, and the canary would find it.
    """
    add_lora = engine_client.add_lora

    async def add(request: LoRARequest) -> bool:
        request.lora_int_id = adapter_number(request.lora_name)
        return bool(await add_lora(request))

    engine_client.add_lora = add


def adapter_number(name: str) -> int:
    """1 to 2³¹ - 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % (2**31 - 1) + 1


def _bound_connections() -> None:
    """Give the API server the limits of our other servers. uvicorn's own parsers bound neither the time that a head
    takes nor the connections without a request, and the one that it prefers no header, before anybody is asked for a
    key."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "visionrl_inference.connections:limited"


def _end() -> None:
    logger.error("the engine is dead, and requests still wait for it: ending")
    os._exit(EXIT_FAILED)


class VllmServer:
    """:class:`~visionrl_inference.adapters.retire.Server` over vLLM's objects."""

    def __init__(self, engine_client: Any, models: Any) -> None:
        self.engine, self.models = engine_client, models

    def loaded(self) -> set[str]:
        return set(self.models.lora_requests)

    async def load(self, name: str) -> None:
        """Raises ``HTTPException`` where there is no such adapter, or it cannot be served."""
        found = await self.models.resolve_lora(name)
        if isinstance(found, ErrorResponse):
            raise HTTPException(found.error.code, found.error.message)

    def has_work(self) -> bool:
        """The engine has a request, or a call such as that which loads an adapter."""
        return bool(self.engine.output_processor.has_unfinished_requests() or self.engine.engine_core.utility_results)

    def end_with_its_engine(self) -> None:
        """vLLM's own shutdown waits for requests whose calls a dead engine never answers."""
        loop = asyncio.get_running_loop()
        if self.engine.errored:
            loop.call_later(SHUTDOWN_SECONDS, _end)
        else:
            loop.call_later(1.0, self.end_with_its_engine)

    def busy(self) -> set[str]:
        states = list(self.engine.output_processor.request_states.values())
        return {state.lora_name for state in states if state.lora_name}

    def lock(self, name: str) -> asyncio.Lock:
        return self.models.lora_resolver_lock[name]

    async def unload(self, name: str) -> None:
        await self.models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
