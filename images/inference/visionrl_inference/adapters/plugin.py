"""The vLLM plugin (entry point ``vllm.endpoint_plugins``, loaded in the API server process alone).

It adds no routes. vLLM calls :meth:`AdapterPlugin.attach_router` before it looks for LoRA resolvers and
:meth:`AdapterPlugin.init_state` when its model list exists: the two moments that adapters by name need.
"""

from __future__ import annotations

import asyncio
import functools
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from visionrl.job import Job
from visionrl_inference.adapters.check import AdapterError, check_adapter, weight_shapes
from visionrl_inference.adapters.names import VersionNames
from visionrl_inference.adapters.resolver import AdapterSource
from visionrl_inference.adapters.retire import Retirement
from visionrl_inference.adapters.store import Store
from visionrl_inference.fetch import FetchError, trainer_client
from visionrl_inference.vllm_args import adapters_in_use


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
        except AdapterError as error:
            raise HTTPException(422, f"adapter {lora_name} is refused: {error}") from error
        if folder is None:
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # vLLM replaces the id


class AdapterPlugin:
    """The entry point's factory. Reads what every part gets: ``VISIONRL_JOB``, ``VISIONRL_TRAINER_URL`` and so on."""

    name = "visionrl_adapters"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.job = Job.model_validate_json(Path(os.environ["VISIONRL_JOB"]).read_text(encoding="utf-8"))
        self.names = VersionNames(self.job.metadata.name)
        self.store = Store(Path(os.environ["VISIONRL_CACHE_DIR"]) / "adapters" / self.job.metadata.name)

    def attach_router(self, app: FastAPI) -> None:
        arguments = app.state.args
        key = Path(os.environ["VISIONRL_KEY_FILE"]).read_text(encoding="utf-8").strip()
        source = AdapterSource(
            self.names,
            self.store,
            trainer=functools.partial(trainer_client, os.environ["VISIONRL_TRAINER_URL"], key, timeout_s=10.0),
            check=functools.partial(
                check_adapter, base=weight_shapes(Path(arguments.model)), max_rank=arguments.max_lora_rank
            ),
        )
        LoRAResolverRegistry.register_resolver(self.name, TrainerResolver(source))

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        # The routes were attached, or not, before this: now only the resolver is switched on.
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        server = VllmServer(engine_client, state.openai_serving_models)
        retirement = Retirement(server, self.store, self.names, keep=adapters_in_use(self.job))
        self._sweeping = asyncio.create_task(retirement.run())  # a task lives as long as its reference


class VllmServer:
    """:class:`~visionrl_inference.adapters.retire.Server` over vLLM's objects."""

    def __init__(self, engine_client: Any, models: Any) -> None:
        self.engine, self.models = engine_client, models

    def loaded(self) -> set[str]:
        return set(self.models.lora_requests)

    def busy(self) -> set[str]:
        states = list(self.engine.output_processor.request_states.values())
        return {state.lora_name for state in states if state.lora_name}

    def lock(self, name: str) -> asyncio.Lock:
        return self.models.lora_resolver_lock[name]

    async def unload(self, name: str) -> None:
        await self.models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
