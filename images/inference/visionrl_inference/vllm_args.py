"""vLLM's command line and environment, from the job: pure functions, checked against vLLM's own parser in the tests."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from visionrl.checks import uses_vision
from visionrl.job import Job
from visionrl.tracing import service_name, traces_url

SERVED_NAME = "base"
PLUGIN = "visionrl_adapters"
"""Name of the ``vllm.endpoint_plugins`` entry point that serves adapters by name."""
CPU_LORA = "visionrl_cpu_lora"
"""Name of the ``vllm.general_plugins`` entry point that corrects LoRA on the CPU backend."""
GUARD = "visionrl_inference.guard.Guard"
SERVER_MODULE = "visionrl_inference.vllm_serve"

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256)
"""Ranks that vLLM takes as an upper limit, up to the job's highest."""

# The first lines are set below; the last one would take back what the job relies on: the key, one engine, the
# guard's paths, the model's own tokenizer.
OWNED = frozenset(
    [
        "--model",
        "--served-model-name",
        "--host",
        "--port",
        "--api-server-count",
        "--dtype",
        "--seed",
        "--tensor-parallel-size",
        "--max-model-len",
        "--max-num-seqs",
        "--generation-config",
        "--logprobs-mode",
        "--limit-mm-per-prompt",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "--gpu-memory-utilization",
        "--enforce-eager",
        "--distributed-executor-backend",
        "--middleware",
        "--mm-processor-cache-gb",
        "--enable-lora",
        "--max-lora-rank",
        "--max-loras",
        "--max-cpu-loras",
        "--api-key",
        "--config",
        "--data-parallel-size",
        "--grpc",
        "--headless",
        "--lora-modules",
        "--revision",
        "--root-path",
        "--runner",
        "--tokenizer",
        "--uds",
    ]
)
"""Options that an ``extraArgs`` entry may not set."""


class ExtraArgsError(ValueError):
    """``inference.vllm.extraArgs`` has an argument that cannot be passed on."""


def vllm_command(job: Job, model_dir: Path, port: int, host: str) -> list[str]:
    """The API server's command. Raises :class:`ExtraArgsError`."""
    spec = job.spec
    vllm, lora_slots = spec.inference.vllm, adapters_in_use(job)
    options: dict[str, str | int | float] = {
        "--model": str(model_dir),
        "--served-model-name": SERVED_NAME,
        "--host": host,
        "--port": port,
        "--api-server-count": vllm.api_server_count,
        "--dtype": spec.model.dtype,
        "--seed": spec.training.seed,
        "--tensor-parallel-size": vllm.tensor_parallel_size,
        "--max-model-len": vllm.max_model_len,
        "--max-num-seqs": vllm.max_num_seqs,
        # The model's own file would set temperature, top-p and top-k behind the policy's back.
        "--generation-config": "vllm",
        # Logprobs under temperature and banned tokens: those that the sample was drawn from.
        "--logprobs-mode": "processed_logprobs",
        "--limit-mm-per-prompt": json.dumps({"image": _images(job), "video": 0}),
        # A frame is seen once, or as often as its segment has turns: vLLM's 4 GiB would only fill the memory.
        "--mm-processor-cache-gb": 1,
        "--tool-call-parser": "hermes",
        "--max-lora-rank": next(rank for rank in LORA_RANKS if rank >= spec.model.lora.r),
        "--max-loras": lora_slots,
        "--max-cpu-loras": lora_slots,
        "--middleware": GUARD,
    }
    switches = ["--enable-auto-tool-choice", "--enable-lora"]
    if spec.inference.gpu is not None:
        options["--gpu-memory-utilization"] = vllm.gpu_memory_utilization
    if spec.inference.gpu is None or vllm.enforce_eager:
        switches.append("--enforce-eager")
    if _small_on_cpu(job):
        options["--distributed-executor-backend"] = "uni"
    if spec.tracking.otlp is not None:
        options["--otlp-traces-endpoint"] = traces_url(spec.tracking.otlp)
    flat = [text for option, value in options.items() for text in (option, str(value))]
    return [sys.executable, "-m", SERVER_MODULE, *flat, *switches, *checked_extra_args(vllm.extra_args)]


def vllm_environment(job: Job, cache: Path) -> dict[str, str]:
    """What vLLM's process gets beside its own environment. The key and the trainer's address are already there. What
    it compiles is kept in ``cache``, which outlives the container, and with ``storage.modelCacheClaim`` the pod."""
    environment = {
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(cache / "flashinfer"),
        "VLLM_PLUGINS": f"{PLUGIN},{CPU_LORA}",
        # The load and unload routes stay away; the plugin turns on the resolver alone.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        # Longer than clients keep idle connections, so that none is closed under a request.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "VLLM_NO_USAGE_STATS": "1",
        # It would come after the last words of a process that ends by itself, which the job's status shows.
        "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
        # The model is on disk: nothing is looked up while serving.
        "HF_HUB_OFFLINE": "1",
    }
    if job.spec.tracking.otlp is not None:
        environment |= {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": service_name("inference"),
        }
    if job.spec.inference.gpu is None:
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(job.spec.inference.vllm.cpu_kv_cache_gib),
            # Otherwise the first request with logprobs compiles C++ for half a minute, and fails without a compiler.
            "TORCHDYNAMO_DISABLE": "1",
        }
        if _small_on_cpu(job):
            # Keeps the CPU backend from putting a worker process behind the engine all the same.
            environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
        else:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "auto"
    return environment


def adapters_in_use(job: Job) -> int:
    """Versions that may answer at once: those that rollouts may lag behind, the current one, the one that is evaluated
    beside the training, and the next one's canary."""
    return job.spec.training.max_staleness + 3


def _images(job: Job) -> dict[str, int] | int:
    """The most images of a prompt, and their size: vLLM warms up and measures its memory with one of the largest size
    that the model takes otherwise, 4096 pixels square."""
    if not uses_vision(job.spec):
        return 0
    size = job.spec.rollout.env_config.image_size
    return {"count": job.spec.inference.vllm.limit_mm_per_prompt.image, "width": size, "height": size}


def _small_on_cpu(job: Job) -> bool:
    """Whether the model runs in the engine's own process, in one thread.

    A step of the tiny model takes a millisecond or two: handing it to a worker process and its threads costs more
    than the step itself (tests/bench/inference.py: 41 against 24 ms of processor time a decision).
    """
    return job.spec.inference.gpu is None and job.spec.model.base == "tiny"


def checked_extra_args(extra_args: Sequence[str]) -> list[str]:
    """``extra_args`` as they are, or :class:`ExtraArgsError` for one that the job decides."""
    for index, argument in enumerate(extra_args):
        where = f"spec.inference.vllm.extraArgs[{index}]"
        if index == 0 and not argument.startswith("-"):
            raise ExtraArgsError(f"{where}: {argument!r} is a value without an option")
        if re.fullmatch(r"-[A-Za-z].*", argument):
            raise ExtraArgsError(f"{where}: write the long form of {argument!r}")
        if not argument.startswith("--"):
            continue
        option = re.split(r"[=.]", argument)[0].replace("_", "-")
        positive = option.replace("--no-", "--", 1)
        # vLLM's parser accepts an option cut short.
        owner = next((owned for owned in sorted(OWNED) if owned.startswith((option, positive))), None)
        if owner is not None:
            raise ExtraArgsError(f"{where}: {argument!r} is refused, the job itself decides {owner}")
    return list(extra_args)
