"""The command that starts vLLM, read back by vLLM's own parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.inference import tiny_job
from visionrl_inference.vllm_args import (
    LORA_RANKS,
    OWNED,
    SERVER_MODULE,
    ExtraArgsError,
    checked_extra_args,
    vllm_command,
    vllm_environment,
)

CACHE = Path("/var/cache/visionrl")
GPU = {"gpu": {"count": 2}, "vllm": {"tensorParallelSize": 2, "gpuMemoryUtilization": 0.8}}


def command(vllm: dict[str, Any] | None = None, **spec: Any) -> list[str]:
    return vllm_command(tiny_job(vllm, **spec), Path("/models/it"), 8123, "0.0.0.0")


def options(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def parse(words: list[str]) -> Any:
    """What vLLM's API server makes of the command. Unknown options end the test."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    start = words.index(SERVER_MODULE) + 1
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(words[start:])
    validate_parsed_serve_args(arguments)
    return arguments


def test_vllm_reads_the_command_as_it_is_meant() -> None:
    arguments = parse(command({"maxModelLen": 512, "maxNumSeqs": 12, "limitMmPerPrompt": {"image": 3}}))
    assert (arguments.model, arguments.served_model_name) == ("/models/it", ["base"])
    assert (arguments.host, arguments.port) == ("0.0.0.0", 8123)
    assert (arguments.dtype, arguments.max_model_len, arguments.max_num_seqs) == ("float32", 512, 12)
    assert (arguments.generation_config, arguments.logprobs_mode) == ("vllm", "processed_logprobs")
    assert (arguments.enable_auto_tool_choice, arguments.tool_call_parser) == (True, "hermes")
    assert (arguments.enable_lora, arguments.max_lora_rank) == (True, 16)
    image = {"count": 3, "width": 144, "height": 144}  # vLLM warms up with a frame of the job, not with a huge one
    assert arguments.limit_mm_per_prompt == {"image": image, "video": 0}
    assert arguments.middleware == ["visionrl_inference.guard.Guard"]
    assert arguments.enforce_eager
    assert arguments.api_server_count == 1
    assert parse(command({"apiServerCount": 4})).api_server_count == 4


def test_vllm_reads_a_gpu_jobs_command() -> None:
    arguments = parse(command(inference=GPU))
    assert (arguments.tensor_parallel_size, arguments.gpu_memory_utilization) == (2, 0.8)
    assert not arguments.enforce_eager


def test_vllm_sends_spans_to_the_jobs_collector() -> None:
    traced = {"otlp": {"endpoint": "http://collector:4318"}}
    assert parse(command()).otlp_traces_endpoint is None
    assert parse(command(tracking=traced)).otlp_traces_endpoint == "http://collector:4318/v1/traces"
    found = vllm_environment(tiny_job(tracking=traced), CACHE)
    assert found["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


def test_every_option_that_the_job_decides_is_one_of_vllms() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    known = {
        option for action in make_arg_parser(FlexibleArgumentParser())._actions for option in action.option_strings
    }
    assert known >= OWNED
    assert options(command()) | options(command(inference=GPU)) <= OWNED


def test_ranks_are_those_that_vllm_takes() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert set(LORA_RANKS) <= set(get_args(MaxLoRARanks))


def test_the_servers_module_has_a_main() -> None:
    import importlib

    assert callable(importlib.import_module(SERVER_MODULE).main)


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (4, 8), (16, 16), (17, 32), (256, 256)])
def test_the_rank_limit_covers_the_jobs_rank(rank: int, limit: int) -> None:
    words = command(model={"base": "tiny", "lora": {"r": rank}})
    assert words[words.index("--max-lora-rank") + 1] == str(limit)


def test_as_many_versions_are_served_as_rollouts_evaluation_and_canary_may_span() -> None:
    words = command(training={"iterations": 1, "maxStaleness": 3})
    for option in ("--max-loras", "--max-cpu-loras"):
        assert int(words[words.index(option) + 1]) >= 6


def test_a_text_policy_gets_no_images() -> None:
    words = command(rollout={"policyConfig": {"useVision": False, "imageOnlyMode": False}})
    assert words[words.index("--limit-mm-per-prompt") + 1] == '{"image": 0, "video": 0}'


def test_the_environment_never_opens_the_load_routes_and_suits_the_device() -> None:
    cpu, gpu = vllm_environment(tiny_job({"cpuKvCacheGib": 3}), CACHE), vllm_environment(tiny_job(inference=GPU), CACHE)
    assert cpu["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == gpu["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert cpu["VLLM_PLUGINS"] == gpu["VLLM_PLUGINS"] == "visionrl_adapters,visionrl_cpu_lora"
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert not [name for name in gpu if "CPU" in name]


def test_what_is_compiled_is_kept_on_the_cache_volume() -> None:
    """The root file system is read-only and a pod's home is lost with it: compiling takes minutes at each start."""
    found = vllm_environment(tiny_job(inference=GPU), CACHE)
    folders = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE")
    assert all(CACHE in Path(found[variable]).parents for variable in folders)


def test_the_tiny_model_runs_in_the_engines_process_and_others_in_workers_with_threads() -> None:
    tiny, other = tiny_job(), tiny_job(model={"base": "org/model"})
    assert "--distributed-executor-backend" in command()
    assert vllm_environment(tiny, CACHE)["OMP_NUM_THREADS"] == "1"
    assert "--distributed-executor-backend" not in command(model={"base": "org/model"})
    assert "OMP_NUM_THREADS" not in vllm_environment(other, CACHE)
    assert vllm_environment(other, CACHE)["VLLM_CPU_OMP_THREADS_BIND"] == "auto"


def test_further_arguments_follow_in_their_order() -> None:
    extra = ["--block-size", "32", "--no-enable-prefix-caching", "--scheduling-policy=priority", "--foo", "-1"]
    assert command({"extraArgs": extra})[-len(extra) :] == extra


@pytest.mark.parametrize(
    "argument",
    [
        "--model",
        "--model=other",
        "--served-model-name",
        "--served_model_name=x",
        "--no-enable-lora",
        "--limit-mm-per-prompt.image=9",
        "--middlew",
        "--api-key",
        "--root-path=/health",
        "--config=file.yaml",
        "--",
        "-tp",
        "-asc=2",
    ],
)
def test_an_argument_that_the_job_decides_is_refused_by_name(argument: str) -> None:
    with pytest.raises(ExtraArgsError, match=r"spec\.inference\.vllm\.extraArgs\[1\]"):
        checked_extra_args(["--enable-prefix-caching", argument])


def test_a_value_without_an_option_is_refused() -> None:
    with pytest.raises(ExtraArgsError, match="without an option"):
        checked_extra_args(["another/model"])
