"""The 4B on a card: seconds, tokens/s, MFU and GiB of an update, with each of its levers and without, and TRL's.

    python -m tests.bench.gpu [--decisions 40 640] [--sides ours trl] [--rounds 3] [--minutes 9] [--json FILE]

On a GPU: the published shape (4.4 billion parameters, random weights, bfloat16) on batches of 4 and 64 episodes of 10
turns, as configs/crafter-qwen3vl-4b.yaml trains it. Without one, the same code runs with a tiny model and few decisions
so that it is known to run; what it then says of speed is of no use, and the lines that wait for a card are named. What
would begin after ``--minutes`` is left out, and named; figures are written as they are found. ``tests/bench/card.json``
keeps a card's result for docs/benchmarks.md, since the next machine may have none.

It needs torch, torchvision, transformers, peft, accelerate and tiktoken, no vLLM. A machine without a network is
brought the rest, for its Python (here 3.12; the last line for TRL's side):

    pip install --target .gpu --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 \\
      pydantic pydantic-core annotated-types typing-inspection ruamel.yaml dashscope \\
      trl==1.16.0 datasets==5.2.0 multiprocess dill xxhash
    PYTHONPATH=.gpu:.:images/trainer python3 -m tests.bench.gpu

MFU counts 4 operations a token and linear weight (2 forward, 2 for the gradient of activations: the weights are frozen)
against the card's dense bfloat16 peak: once over all tokens of all rows, as others count, once over those that were
computed (a shared prefix counts once for each micro-batch; what is recomputed counts once in both).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.bench.common import forget_peak, machine, median, memory_mib, spread, write
from tests.bench.trl import Row, Trl
from tests.support.prompts import qwen_batch
from visionrl.job import EnvSettings, Guards, JobSpec, Lora, TinyModel
from visionrl.jobfile import load_job
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.update import update
from visionrl_trainer.model import packing
from visionrl_trainer.model.policy import PackedSequences, Policy
from visionrl_trainer.rollout.batch import Frame, Sample

FILE = Path(__file__).parents[2] / "configs" / "crafter-qwen3vl-4b.yaml"
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16, by what a card's name contains."""
LEVERS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "prefix not shared": {"shared": False},
    "layers recomputed": {"activation_checkpointing": "on"},
    "neither": {"shared": False, "activation_checkpointing": "on"},
    "micro-batches of 4,096 tokens": {"micro_batch_tokens": 4_096},
    "micro-batches of 8,192 tokens": {"micro_batch_tokens": 8_192},
    "two updates (one pass more)": {"updates_per_iteration": 2},
}
MANY = 200
"""Decisions; of more, one round is timed, without another one to warm up: the batch before was one."""
TRL_SIDES = {"TRL": False, "TRL, layers recomputed": True}
TRL_ROWS = 4
"""Of a micro-batch: 5,000 tokens."""
WAIT_FOR_A_CARD = (
    "seconds, tokens/s, MFU and GiB of the 4B's update with 40 and 640 decisions, with and without each lever",
    "the same rows through TRL's GRPOTrainer on the same card (its micro-batches of 4 rows, with and without its "
    "checkpointing)",
    "vLLM's model runner V2: logit_bias and temperature come before the processed logprobs",
    "the first steps of the real weights: by how many nats learning rate 5e-5 moves their logprobs",
    "iteration time and episodes/min of configs/crafter-qwen3vl-4b.yaml on two cards",
)


@dataclass(frozen=True)
class Work:
    """What an update computes, in operations by count of tokens."""

    linear: int
    """Weights of the decoder's linear layers."""
    head: int
    tokens: int
    """Of all rows."""
    answers: int
    peak: float | None
    """Operations a second of the device."""

    @classmethod
    def of(cls, policy: Policy, samples: Sequence[Sample]) -> Work:
        layers = policy.model.model.language_model.layers
        name = device_name(policy.device)
        return cls(
            linear=sum(w.numel() for n, w in layers.named_parameters() if w.ndim == 2 and "lora_" not in n),
            head=policy.model.lm_head.weight.numel(),
            tokens=sum(len(s.prompt_ids) + len(s.completion_ids) for s in samples),
            answers=sum(len(s.completion_ids) for s in samples),
            peak=next((flops for part, flops in PEAK_FLOPS.items() if part in name), None),
        )

    def mfu(self, tokens: int, seconds: float) -> float | None:
        operations = 4 * (self.linear * tokens + self.head * self.answers)
        return round(operations / seconds / self.peak, 3) if self.peak else None


class Timed:
    """Seconds and peak memory of a call, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __call__(self, call: Callable[[], object]) -> tuple[float, float]:
        """Seconds, GiB."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        else:
            forget_peak()
        began = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return seconds, torch.cuda.max_memory_allocated() / 2**30 if self.cuda else memory_mib("VmHWM") / 1024


def loaded_gib(device: torch.device) -> float:
    """What is allocated between two updates: mostly the weights."""
    return torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else memory_mib("VmRSS") / 1024


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def rounds_of(samples: Sequence[Sample], rounds: int) -> range:
    """The numbers of the rounds; those below 0 warm up."""
    return range(1) if len(samples) > MANY else range(-1, rounds)


def load(device: torch.device, spec: JobSpec, folder: Path) -> tuple[Policy, int]:
    """The policy and its image size."""
    if device.type == "cuda":
        from tests.support.true_width import full_policy

        policy, size = full_policy(folder / "model", device), spec.rollout.env_config.image_size
    else:
        from visionrl.tiny.model import build_tiny

        size = 144
        policy = Policy.load(build_tiny(TinyModel(), EnvSettings(image_size=size), folder), "float32", device)
    policy.add_adapter(spec.model.lora if device.type == "cuda" else Lora(r=4, alpha=8), seed=0)
    return policy, size


def ours(
    policy: Policy, spec: JobSpec, samples: list[Sample], frames: dict[str, Frame], levers: Sequence[str], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each lever."""
    work, timed, start = Work.of(policy, samples), Timed(policy.device), policy.adapter_weights()
    loaded = loaded_gib(policy.device)
    collate = policy.collate
    for lever in levers:
        settings = dict(LEVERS[lever])
        shortest = packing.SHORTEST_PREFIX if settings.pop("shared", True) else 1 << 30
        training = spec.training.model_copy(update=settings)
        job = spec.model_copy(update={"training": training})
        policy.memory = None
        computed: list[int] = []

        def counted(chosen: Sequence[Sample], computed: list[int] = computed) -> PackedSequences:
            rows = collate(chosen)
            computed.append(len(rows.ids_P))
            return rows

        seconds, peak, differs = [], 0.0, 0.0
        with (
            mock.patch.object(packing, "SHORTEST_PREFIX", shortest),
            mock.patch.object(policy, "collate", counted),
        ):
            for round_ in rounds_of(samples, rounds):
                policy.set_adapter_weights(start)
                optimizer = adapter_optimizer(policy.trainable(), training.learning_rate, 0.0)
                stats: list[Any] = []
                computed.clear()
                took, peak = timed(
                    lambda optimizer=optimizer, job=job, stats=stats: stats.append(  # type: ignore[misc]
                        update(policy, optimizer, samples, frames, job, torch.Generator().manual_seed(0))
                    )
                )
                differs = max(differs, stats[0].mismatch_max or 0.0)
                if round_ >= 0:
                    seconds.append(took)
        policy.set_adapter_weights(start)
        assert policy.memory is not None
        row = figures(work, policy.device, len(samples), lever, seconds, peak - loaded, sum(computed), differs)
        yield row | {"planned_gib": round(policy.memory.needed / 2**30, 1)}


def profile(policy: Policy, spec: JobSpec, samples: list[Sample], frames: dict[str, Frame]) -> str:
    """Where the time of an update goes, as configured, by operation: a table."""
    policy.memory = None
    start = policy.adapter_weights()
    optimizer = adapter_optimizer(policy.trainable(), spec.training.learning_rate, 0.0)
    with torch.profiler.profile() as found:
        update(policy, optimizer, samples, frames, spec, torch.Generator().manual_seed(0))
    policy.set_adapter_weights(start)
    by = "self_cuda_time_total" if policy.device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90)


def figures(
    work: Work,
    device: torch.device,
    decisions: int,
    lever: str,
    seconds: Sequence[float],
    over: float,
    computed: int,
    differs: float | None,
) -> dict[str, Any]:
    took = median(seconds)
    return {
        "device": device_name(device),
        "decisions": decisions,
        "lever": lever,
        "seconds": round(took, 3),
        "spread": round(spread(seconds), 3),
        "tokens_per_s": round(work.tokens / took),
        "mfu": work.mfu(work.tokens, took),
        "mfu_of_computed": work.mfu(computed, took),
        "over_loaded_gib": round(over, 1),
        "differs_by": None if differs is None else float(f"{differs:.1e}"),
    }


def trl(
    load_model: Callable[[], tuple[Any, Any]],
    work: Work,
    samples: list[Sample],
    frames: dict[str, Frame],
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """The same rows through GRPOTrainer's passes: the sampled logprobs once more, and the update."""
    rows = [Row(list(s.prompt_ids), list(s.completion_ids), frames[s.images[0]], s.advantage) for s in samples]
    for name, checkpointing in TRL_SIDES.items():
        model, processor = load_model()
        device, found = model.device, []
        try:
            made = Trl(model, processor, rows, TRL_ROWS, checkpointing)
            loaded = loaded_gib(device)
            found = [Timed(device)(made.iteration) for _ in rounds_of(samples, rounds)][-rounds:]
            del made
        except torch.OutOfMemoryError as error:
            print(f"{name}: {error}", file=sys.stderr)
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if found:
            seconds, over = [took for took, _ in found], max(peak for _, peak in found) - loaded
            yield figures(work, device, len(samples), name, seconds, over, work.tokens * 3 // 2, None)  # a forward more


def trl_model(device: torch.device, folder: Path) -> tuple[Any, Any]:
    """The same shape for TRL, with transformers' own attention."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if device.type == "cuda":
        from transformers import Qwen3VLForConditionalGeneration

        from tests.support.true_width import true_width_config

        folder = folder / "model"
        with torch.device(device):
            model: Any = Qwen3VLForConditionalGeneration._from_config(
                true_width_config(36, 24), dtype=torch.bfloat16, attn_implementation="sdpa"
            )
    else:
        folder = next(path.parent for path in folder.rglob("config.json"))
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return model, AutoProcessor.from_pretrained(folder, padding_side="left")


def bench_spec(device: torch.device) -> JobSpec:
    """The file's, without its guards: random weights in bfloat16 disagree with themselves in another packing by more
    than trained ones."""
    spec = load_job(FILE).spec
    training = spec.training.model_copy(update={"guards": Guards(maxMismatchKL=None, max_rejected_rate=None)})
    model = spec.model.model_copy(update={"dtype": "float32"} if device.type == "cpu" else {})
    return spec.model_copy(update={"training": training, "model": model})


def measure(arguments: argparse.Namespace, device: torch.device, spec: JobSpec) -> Iterator[dict[str, Any]]:
    """The rows, one by one: every batch's levers; after the first batch's, TRL's with the same rows."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        policy, size = load(device, spec, folder)
        for index, decisions in enumerate(arguments.decisions or ([40, 640] if device.type == "cuda" else [4])):
            samples, frames = qwen_batch(policy, decisions, size, spec.rollout.policy_config.temperature)
            if "ours" in arguments.sides:
                yield from ours(policy, spec, samples, frames, arguments.levers, arguments.rounds)
            if index > 0:
                continue
            if arguments.profile:
                arguments.profile.write_text(profile(policy, spec, samples, frames))
            if "trl" in arguments.sides:
                work = Work.of(policy, samples)
                yield from trl(lambda: trl_model(device, folder), work, samples, frames, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, nargs="+", help="default: 40 and 640 on a GPU, 4 without")
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=list(LEVERS))
    has_trl = importlib.util.find_spec("trl") is not None
    parser.add_argument("--sides", nargs="+", choices=("ours", "trl"), default=["ours", *["trl"] * has_trl])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing begins after them")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--profile", type=Path, help="write here where the time of the first batch's update goes")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = bench_spec(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    waiting = list(WAIT_FOR_A_CARD if device.type == "cpu" else WAIT_FOR_A_CARD[2:])
    end = time.monotonic() + 60 * arguments.minutes
    for row in measure(arguments, device, spec):
        rows.append(row)
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%} MFU ({row['mfu_of_computed']:.1%} of what is computed), "
        print(
            f"{row['device']}, {row['decisions']} decisions, {row['lever']}: {row['seconds']} s "
            f"(± {row['spread']:.0%}), {row['tokens_per_s']:,} tokens/s, {mfu}{row['over_loaded_gib']} GiB over "
            f"loaded (planned: {row.get('planned_gib')}), differs by {row['differs_by']}",
            flush=True,
        )
        write(arguments.json, "gpu", {"rows": rows, "waits_for_a_card": waiting})
        if not time.monotonic() < end:
            print(f"the {arguments.minutes:g} minutes are over: what comes after {row['lever']!r} is left out")
            break
    for line in waiting:
        print(f"waits for a card: {line}")
    print(machine())
    write(arguments.json, "gpu", {"rows": rows, "waits_for_a_card": waiting})


if __name__ == "__main__":
    main()
