"""The 4B on a card: seconds, tokens/s, MFU and GiB of an update, with each of its levers and without.

    python -m tests.bench.gpu [--decisions 40 640] [--rounds 3] [--json FILE]

On a GPU: the published shape (4.4 billion parameters, random weights, bfloat16) on batches of 4 and 64 episodes of 10
turns, as configs/crafter-qwen3vl-4b.yaml trains it. Without one, the same code runs with a tiny model and few decisions
so that it is known to run; what it then says of speed is of no use, and the lines that wait for a card are named.

MFU counts 4 operations a token and linear weight (2 forward, 2 for the gradient of activations: the weights are frozen)
over all tokens of all rows, shared or not, against the card's dense bfloat16 peak.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.bench.common import machine, median, memory_mib, spread, write
from tests.support.prompts import qwen_batch
from visionrl.job import EnvSettings, JobSpec, Lora, TinyModel
from visionrl.jobfile import load_job
from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.algo.update import update
from visionrl_trainer.model import packing
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Frame, Sample

FILE = Path(__file__).parents[2] / "configs" / "crafter-qwen3vl-4b.yaml"
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16, by what a card's name contains."""
LEVERS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "prefix not shared": {"shared": False},
    "layers recomputed": {"activation_checkpointing": "on"},
    "neither": {"shared": False, "activation_checkpointing": "on"},
    "micro-batches of 16,384 tokens": {"micro_batch_tokens": 16_384},
    "two updates (one pass more)": {"updates_per_iteration": 2},
}
WAIT_FOR_A_CARD = (
    "seconds, tokens/s, MFU and GiB of the 4B's update with 40 and 640 decisions, with and without each lever",
    "the same rows through TRL's GRPOTrainer on the same card (tests.bench.trainer measures it on the CPU)",
    "vLLM's model runner V2: logit_bias and temperature come before the processed logprobs",
    "flash attention with the shared prefix (torch.nn.attention.bias) against the CPU's kernel",
    "the first steps of the real weights: by how many nats learning rate 5e-5 moves their logprobs",
    "iteration time and episodes/min of configs/crafter-qwen3vl-4b.yaml on two cards",
)


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


def measure(
    policy: Policy, spec: JobSpec, samples: list[Sample], frames: dict[str, Frame], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each lever; the first round warms up."""
    device = policy.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak_flops = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    language_model = policy.model.model.language_model
    linear = sum(w.numel() for n, w in language_model.layers.named_parameters() if w.ndim == 2 and "lora_" not in n)
    tokens = sum(len(s.prompt_ids) + len(s.completion_ids) for s in samples)
    answers = sum(len(s.completion_ids) for s in samples)
    operations = 4 * (linear * tokens + policy.model.lm_head.weight.numel() * answers)
    start = policy.adapter_weights()
    for lever, settings in LEVERS.items():
        changes = {key: value for key, value in settings.items() if key != "shared"}
        training = spec.training.model_copy(update=changes)
        job = spec.model_copy(update={"training": training})
        policy.set_adapter_weights(start)
        policy.memory = None
        seconds = []
        shortest = packing.SHORTEST_PREFIX if settings.get("shared", True) else 1 << 30
        with mock.patch.object(packing, "SHORTEST_PREFIX", shortest):
            for round_ in range(-1, rounds):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                    torch.cuda.synchronize(device)
                policy.set_adapter_weights(start)
                optimizer = adapter_optimizer(policy.trainable(), training.learning_rate, 0.0)
                began = time.perf_counter()
                update(policy, optimizer, samples, frames, job, torch.Generator().manual_seed(0))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if round_ >= 0:
                    seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else memory_mib("VmHWM") / 1024
        yield {
            "device": name,
            "decisions": len(samples),
            "lever": lever,
            "seconds": round(median(seconds), 3),
            "spread": round(spread(seconds), 3),
            "tokens_per_s": round(tokens / median(seconds)),
            "mfu": round(operations / median(seconds) / peak_flops, 3) if peak_flops else None,
            "peak_gib": round(peak, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, nargs="+", help="default: 40 and 640 on a GPU, 4 without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = load_job(FILE).spec
    if device.type == "cpu":
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "float32"})})
        torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        policy, size = load(device, spec, Path(folder))
        for decisions in arguments.decisions or ([40, 640] if device.type == "cuda" else [4]):
            samples, frames = qwen_batch(policy, decisions, size, spec.rollout.policy_config.temperature)
            for row in measure(policy, spec, samples, frames, arguments.rounds):
                rows.append(row)
                mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%} MFU, "
                print(
                    f"{row['device']}, {row['decisions']} decisions, {row['lever']}: {row['seconds']} s "
                    f"(± {row['spread']:.0%}), {row['tokens_per_s']:,} tokens/s, {mfu}{row['peak_gib']} GiB",
                    flush=True,
                )
    waiting = WAIT_FOR_A_CARD if device.type == "cpu" else ()
    for line in waiting:
        print(f"waits for a card: {line}")
    print(machine())
    write(arguments.json, "gpu", {"rows": rows, "waits_for_a_card": waiting})


if __name__ == "__main__":
    main()
