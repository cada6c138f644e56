"""Training files of the reference system as jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.documents import parse_toml
from visionrl.job import Job
from visionrl.jobfile import JobFileError, load_job, parse_job, read_job_file
from visionrl.reference.job import convert_job
from visionrl.reference.text import as_yaml

FILES = Path(__file__).parent / "testdata"
SHIPPED = Path(__file__).parents[3] / "configs" / "crafter-qwen3vl-4b.yaml"
RL, NEWER, SFT = "rl_vision.toml", "rl_newer.toml", "sft_vision.toml"


def changed(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    """A copy of a file with lines replaced, and its data beside it."""
    text = (FILES / name).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file = folder / name
    file.write_text(text)
    (folder / "train.jsonl").write_text("{}\n" * 10)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(JobFileError) as refused:
        load_job(file)
    return str(refused.value)


def test_the_published_file_is_the_shipped_job() -> None:
    """configs/crafter-qwen3vl-4b.yaml was written by hand from the same file."""
    found, shipped = load_job(FILES / RL).spec, load_job(SHIPPED).spec
    for section in ("placement", "evaluation"):
        assert getattr(found, section) == getattr(shipped, section)
    assert found.algorithm == shipped.algorithm.model_copy(update={"clip_low": None, "clip_high": None})
    assert found.model.lora == shipped.model.lora
    assert (found.inference.gpu, found.trainer.gpu) == (shipped.inference.gpu, shipped.trainer.gpu)
    assert found.inference.vllm == shipped.inference.vllm
    changed = {"micro_batch_size": found.training.micro_batch_size, "max_staleness": 0}
    assert found.training == shipped.training.model_copy(update=changed)
    policy = shipped.rollout.policy_config.model_copy(update={"top_p": 0.95})
    assert found.rollout == shipped.rollout.model_copy(update={"policy_config": policy})
    assert load_job(FILES / RL).metadata.annotations == {"tags/experiment": "case"}


def test_the_newer_sections_mean_the_same() -> None:
    job = load_job(FILES / NEWER)
    spec = job.spec
    assert job.name == "newer-rl-4b"
    assert spec.algorithm.loss == "grpo"
    assert spec.inference.gpu is not None
    assert (spec.inference.gpu.count, spec.inference.vllm.tensor_parallel_size) == (2, 2)
    assert spec.inference.gpu.products[0] == "NVIDIA-H100-80GB-HBM3"
    assert spec.inference.vllm.extra_args == ["--block-size", "32", "--enable-prefix-caching"]
    assert (spec.training.groups_per_iteration, spec.training.group_size, spec.training.iterations) == (2, 4, 10)
    assert spec.rollout.policy_config.max_llm_calls == 8
    assert spec.rollout.policy_config.temperature == 0.8
    assert spec.rollout.env_config.length == 100
    assert spec.training.rewards.weights == {"collect_wood": 2.0}
    assert (spec.evaluation.first_seed, spec.evaluation.episodes) == (0, 4)
    assert spec.model.lora.target_modules == ["q_proj", "v_proj"]


def test_epochs_of_supervised_files_become_steps(tmp_path: Path) -> None:
    job = load_job(changed(tmp_path, SFT))
    warm_start = job.spec.training.warm_start
    assert job.spec.algorithm.type == "sft"
    assert warm_start is not None
    assert (warm_start.trains, warm_start.steps, warm_start.batch_size) == ("adapter", 5, 4)
    assert warm_start.data is not None
    assert warm_start.data.train == str(tmp_path / "train.jsonl")
    assert job.spec.trainer.gpu is not None
    assert job.spec.model.lora.r == 16


def test_data_named_on_the_command_line_is_counted_instead(tmp_path: Path) -> None:
    file = changed(tmp_path, SFT, ('data = "train.jsonl"\n', ""))
    assert "job.data: required, or job.data_path" in refusal(file)
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n" * 100)
    warm_start = read_job_file(file, other).job.spec.training.warm_start
    assert warm_start is not None
    assert warm_start.steps == 50


@pytest.mark.parametrize("name", [RL, NEWER, SFT])
def test_what_is_printed_is_the_same_job(name: str, tmp_path: Path) -> None:
    found = read_job_file(changed(tmp_path, name))
    assert found.conversion is not None
    assert parse_job(as_yaml(found.conversion, name), folder=tmp_path) == found.job


def test_every_note_is_printed_at_its_key() -> None:
    conversion = read_job_file(FILES / RL).conversion
    assert conversion is not None
    text = as_yaml(conversion, RL)
    assert "      # rollout.policy_config.top_p: in evaluations only" in text
    assert text.index("# judge.options.timeout_s: no effect") < text.index("apiVersion")
    assert "learningRate: 5.0e-05" in text
    for note in conversion.notes:
        assert f"# {note.key}: " in text


# --- what is refused


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (RL, ("gpu_count = 2", "gpu_count = 4"), "9: compute.gpu_count: is 4, but gpus_for_vllm 1"),
        (RL, ("gpus_for_ref = 0", "gpus_for_ref = 1"), "topology.gpus_for_ref: needs no GPU here"),
        (RL, ("gpus_for_training = 1\n", ""), "topology.gpus_for_training: required"),
        (RL, ("tensor_parallel = 1", "tensor_parallel = 2"), "vllm.tensor_parallel_size: is 1, but topology.tensor_"),
        (NEWER, ("tensor_parallel = 2", "tensor_parallel = 1"), "compute.topology.tensor_parallel: is 1, but gpus_"),
        (RL, ("single_node_split", "multi_node"), "topology.type: is 'multi_node'"),
        (NEWER, ("nodes = 1", "nodes = 2"), "compute.nodes: is 2"),
        (RL, ("group_size = 2", "group_size = 1"), "training.group_size: must be at least 2"),
        (RL, ("group_size = 2", "group_size = 3"), "is 4, which must be a multiple of training.group_size (3)"),
        (RL, ("temperature = 0.6", "temperature = 0.0"), "rollout.policy_config.temperature: must be at least 0.01"),
        (RL, ("max_model_len = 4096", "max_model_len = 1024"), "vllm.max_model_len: must be at least"),
        (RL, ('trainer_mode = "lora"', 'trainer_mode = "full"'), "model.trainer_mode: is 'full'"),
        (RL, ('base = "Qwen', 'source = "ft:x"\nbase = "Qwen'), "model.source: write exactly one of"),
        (RL, ('base = "Qwen/Qwen3-VL-4B-Instruct"', 'source = "ft:x"'), "model.source: 'ft:x' is a model of the"),
        (RL, ('base = "Qwen/Qwen3-VL-4B-Instruct"\n', ""), "model.base: write exactly one of"),
        (RL, ("Qwen3-VL-4B", "Qwen2-VL-7B"), "model.base: the trainer trains Qwen3-VL alone"),
        (RL, ('["all-linear"]', '["q_proj", "mm_projector"]'), "lora.target_modules: 'mm_projector' is no linear"),
        (RL, ('"unique"', '"absolute"'), "training.event_rewards_kind: is 'absolute'"),
        (RL, ("step_beta = 0.0", "step_beta = 0.5"), "rollout.env_config.step_rewards.step_beta: is 0.5, but"),
        (RL, ("0, 1, 2, 3, 4, 5, 6, 7", "0, 2, 4"), "evaluation.seeds: must be consecutive"),
        (RL, ("instances = 8", "instances = 9"), "evaluation.instances: is 9, but there are 8 seeds"),
        (RL, ("weight_sync_interval = 1", "weight_sync_interval = 4"), "training.weight_sync_interval: is 4"),
        (RL, ('targets = ["policy"]', 'targets = ["judge"]'), "training.weight_sync.targets: must have"),
        (RL, ('["agent", "env"]', '["agent", "agent"]'), "rollout.ops: must be"),
        (RL, ("origin_rewards_only = true", "origin_rewards_only = false"), "rollout.task_app_origin_rewards_only: is"),
        (RL, ("learning_rate = 5e-5", "learning_rate = inf"), "training.learning_rate: must be a finite number"),
        (RL, ("learning_rate = 5e-5", 'learning_rate = "5e-5"'), "training.learning_rate: must be a finite number"),
        (RL, ("[judge.options]", '[judge]\ntype = "gpt"\n[judge.options]'), "judge.type: is 'gpt': there is no judge"),
        (RL, ('task_url = "', 'judge_url = "x"\ntask_url = "'), "services.judge_url: there is no judge model"),
        (RL, ('env_name = "crafter"', 'env_name = "doom"'), "rollout.policy_name: is of another environment"),
        (RL, ("max_model_len", "max_model_ln"), "vllm.max_model_ln: unknown key; did you mean max_model_len?"),
        (RL, ("[evaluation]", "[evalution]"), "evalution: unknown key; did you mean evaluation?"),
        (RL, ('type = "online"\n', ""), "algorithm.type: required"),
        (NEWER, ("step_rewards_k_limits = { collect_wood = 1 }", "step_rewards_k_limits = { collect_wood = 3 }"),
         "training.rewards.step_rewards_k_limits: each achievement counts once"),
        (NEWER, ("{ collect_wood = 2.0 }", "{ colect_wood = 2.0 }"), "training.rewards.step_rewards_weights: is no"),
        (NEWER, ("event = 0.0, outcome = 0.0 }", "event = 0.5, outcome = 0.0 }"), "judge.reward_blend: has event"),
        (NEWER, ("top_k = -1", "top_k = 20"), "policy.top_k: is 20"),
        (SFT, ("use_qlora = false", "use_qlora = true"), "training.use_qlora: is True"),
        (SFT, ('variety = "lora"', 'variety = "fft"'), "training.mode: is 'lora', but algorithm.variety is 'fft'"),
        (SFT, ('data = "train.jsonl"', 'data = "none.jsonl"'), "job.data: no file none.jsonl on this machine"),
        (SFT, ("gpu_count = 1", "gpu_count = 2"), "compute.gpu_count: is 2: the trainer uses one GPU"),
        (SFT, ("fp16 = false", "fp16 = true"), "hyperparameters.parallelism.fp16: is True"),
        (SFT, ("per_device_batch = 1", "per_device_batch = 1\nglobal_batch = 5"), "hyperparameters.global_batch: is 5"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_here_is_refused(name: str, change: tuple[str, str], told: str, tmp_path: Path) -> None:
    assert told in refusal(changed(tmp_path, name, change))


def test_a_refusal_has_the_line_of_its_key(tmp_path: Path) -> None:
    file = changed(tmp_path, RL, ("group_size = 2", "group_size = 1"), ("gpu_count = 2", "gpu_count = 9"))
    lines = (FILES / RL).read_text().splitlines()
    first, second = refusal(file).splitlines()
    assert first.startswith(f"{file}:{lines.index('gpu_count = 2') + 1}: compute.gpu_count: ")
    assert second.startswith(f"{file}:{lines.index('group_size = 2') + 1}: training.group_size: ")
    assert second.endswith("(spec.training.groupSize)")


def test_a_file_of_another_command_is_told_which(tmp_path: Path) -> None:
    assert "eval: is a file of an evaluation: visionrl eval" in refusal(FILES / "eval_vision.toml")
    assert "filter: is a file of visionrl filter" in refusal(FILES / "filter_vision_sft.toml")


# --- every key


def keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{name}.")


FREE = ("tags.", "smoke.", "vllm.block", "vllm.enable", "step_rewards_weights.", "step_rewards_k_limits.", "blend.")
"""Tables whose keys are anybody's."""


def misspelt(table: Any, path: list[str]) -> Any:
    """A copy with one key misspelt."""
    name, *rest = path
    return {
        (f"{key}x" if key == name and not rest else key): misspelt(value, rest) if key == name and rest else value
        for key, value in table.items()
    }


NAMED = [
    (file, key)
    for file in (RL, NEWER, SFT)
    for key in keys(parse_toml((FILES / file).read_text())[0])
    if not any(free in key for free in FREE)
]


@pytest.mark.parametrize(("file", "key"), NAMED)
def test_a_misspelt_key_is_refused_with_the_nearest(file: str, key: str) -> None:
    data, lines = parse_toml((FILES / file).read_text())
    conversion = convert_job(misspelt(data, key.split(".")), lines, "demo", lambda path: (path, 10))
    told = [problem.message for problem in conversion.problems if problem.path == f"{key}x"]
    if key == "algorithm.type":
        assert "algorithm.type" in str(conversion.problems[0])
    elif key == "algorithm":
        assert conversion.problems
    else:
        assert told == [f"unknown key; did you mean {key.rpartition('.')[2]}?"]


SECTIONS = {key for _, key in NAMED}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@given(file=st.sampled_from([RL, NEWER, SFT]), data=st.data())
def test_any_value_is_mapped_or_refused(file: str, data: st.DataObject) -> None:
    """Never another exception; and what is mapped is a job, or refused with the key that it comes from."""
    tables, lines = parse_toml((FILES / file).read_text())
    key = data.draw(st.sampled_from(sorted(SECTIONS)))
    *parents, last = key.split(".")
    table = tables
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return
    table[last] = data.draw(VALUES)
    conversion = convert_job(tables, lines, "demo", lambda path: (path, 10))
    if not conversion.problems:
        try:
            Job.model_validate(conversion.document(), by_alias=True, by_name=False)
        except ValueError:
            assert table[last] is not None


@given(count=st.integers(0, 9), serving=st.integers(0, 4), training=st.integers(0, 3), reference=st.integers(0, 2))
def test_a_topology_adds_up_or_is_refused(count: int, serving: int, training: int, reference: int) -> None:
    tables, lines = parse_toml((FILES / RL).read_text())
    tables["compute"]["gpu_count"] = count
    tables["topology"] |= {
        "gpus_for_vllm": serving,
        "gpus_for_training": training,
        "gpus_for_ref": reference,
        "tensor_parallel": max(serving, 1),
    }
    tables["vllm"]["tensor_parallel_size"] = max(serving, 1)
    conversion = convert_job(tables, lines, "demo")
    assert bool(conversion.problems) is (reference > 0 or serving + training + reference != count)
    if not conversion.problems:
        spec = conversion.document()["spec"]
        assert spec.get("inference", {}).get("gpu", {}).get("count", 0) == serving
        assert spec.get("trainer", {}).get("gpu", {}).get("count", 0) == training


@given(per_batch=st.integers(1, 20), batches=st.integers(1, 5), group=st.integers(1, 20))
def test_an_iteration_is_whole_groups(per_batch: int, batches: int, group: int) -> None:
    tables, lines = parse_toml((FILES / RL).read_text())
    tables["rollout"] |= {"episodes_per_batch": per_batch, "batches_per_step": batches}
    tables["training"]["group_size"] = group
    conversion = convert_job(tables, lines, "demo")
    whole = per_batch * batches % group == 0
    assert bool(conversion.problems) is not whole
    if whole:
        training = conversion.document()["spec"]["training"]
        assert training["groupsPerIteration"] * training["groupSize"] == per_batch * batches
