"""One GRPO update here against TRL's GRPOTrainer: the same model, adapter, rows and loss.

    python -m tests.bench.trainer [--shape tiny] [--rounds 3] [--json FILE]
    python -m tests.bench.trainer --shape layout --sides ours trl

Each side is a process of its own with one thread, and all take turns. An *iteration* is what a side does with a batch
that a server sampled: here the frames' features and the update, whose logprobs are also the old ones; there the pass
that recomputes the sampled logprobs (TRL's correction for a server) and the update. `update` leaves that pass out, and
here the frames, which are encoded as groups arrive: the training waits for `update` here, for `iteration` there.
TRL's inputs are prepared beforehand and not timed. TRL needs an environment of its own: make .cache/trl/.complete

tokens/s counts every row's prompt and completion, however often it is computed. MFU counts 4 floating-point operations
a token and weight of the decoder's linear layers (2 forward, 2 for the gradient of activations: weights are frozen),
and as many for the head's on completion tokens, against one core's float32 matrix product on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.common import forget_peak, machine, median, memory_mib, spread, write
from tests.bench.trl import ALPHA, LEARNING_RATE, RANK, Row, Trl

ROOT = Path(__file__).parents[2]
TRL_PYTHON = ROOT / ".cache" / "trl" / "bin" / "python"
SIDES = ("ours", "trl", "trl-checkpointing")


@dataclass(frozen=True)
class Shape:
    """A model and the layout of its rows."""

    model: dict[str, Any]
    """Fields of `spec.model.tiny`."""
    rows: int
    micro: int
    """Rows of a micro-batch, on every side."""
    shared: int
    """Text tokens that all prompts begin with, beside the template's."""
    own: tuple[int, int]
    """Text tokens of a prompt's own: least, most."""
    completion: tuple[int, int]


SHAPES = {
    # The demo: a short prompt, 81 visual tokens, a call of a few actions.
    "tiny": Shape({}, rows=128, micro=32, shared=0, own=(0, 4), completion=(6, 13)),
    # The 4B's layout with few narrow layers: 1,089 of about 1,240 prompt tokens are the system prompt and the tools.
    "layout": Shape(
        {"hiddenSize": 320, "layers": 8, "heads": 10, "intermediateSize": 960},
        rows=16,
        micro=8,
        shared=1080,
        own=(45, 65),
        completion=(25, 45),
    ),
    # A hundred million parameters, prompts that share a third.
    "100m": Shape(
        {"hiddenSize": 640, "layers": 12, "heads": 10, "intermediateSize": 2560, "visionHiddenSize": 256},
        rows=8,
        micro=4,
        shared=120,
        own=(100, 130),
        completion=(20, 100),
    ),
}
IMAGE_SIZE, IMAGE_TOKENS = 144, 81


def build(shape: Shape, folder: Path) -> Path:
    """The model's directory."""
    from visionrl.job import EnvSettings, TinyModel
    from visionrl.tiny.model import build_tiny

    return build_tiny(TinyModel.model_validate(shape.model), EnvSettings(image_size=IMAGE_SIZE), folder)


def make_rows(shape: Shape, model: Path) -> list[Row]:
    """Random text around a frame; every prompt begins with the same."""
    from transformers import AutoTokenizer

    tokenizer, random = AutoTokenizer.from_pretrained(model), np.random.default_rng(0)
    text = [n for n in range(len(tokenizer)) if n not in tokenizer.all_special_ids]
    ids = tokenizer.get_vocab()

    def some(count: int) -> list[int]:
        return [text[n] for n in random.integers(len(text), size=count)]

    system = some(shape.shared)
    return [
        Row(
            [
                *system,
                *some(int(random.integers(shape.own[0], shape.own[1] + 1))),
                ids["<|vision_start|>"],
                *[ids["<|image_pad|>"]] * IMAGE_TOKENS,
                ids["<|vision_end|>"],
            ],
            some(int(random.integers(shape.completion[0], shape.completion[1] + 1))),
            random.integers(256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
            float(random.normal()),
        )
        for _ in range(shape.rows)
    ]


class Ours:
    """The project's update."""

    def __init__(self, shape: Shape, model: Path, rows: Sequence[Row]) -> None:
        import torch

        from visionrl.frames import frame_hash
        from visionrl.job import Algorithm, Guards, JobSpec, Lora, PolicyModel, Training
        from visionrl_trainer.algo.optim import adapter_optimizer
        from visionrl_trainer.algo.update import encode
        from visionrl_trainer.model.policy import Policy
        from visionrl_trainer.rollout.batch import Sample

        training = Training(
            iterations=1,
            micro_batch_size=shape.micro,
            micro_batch_tokens=1 << 30,
            activation_checkpointing="off",
            learning_rate=LEARNING_RATE,
            guards=Guards(maxMismatchKL=None, max_rejected_rate=None),
        )
        self.spec = JobSpec(
            algorithm=Algorithm(loss="grpo"),
            model=PolicyModel(base="tiny", dtype="float32", lora=Lora(r=RANK, alpha=ALPHA)),
            training=training,
        )
        self.policy = Policy.load(model, "float32", torch.device("cpu"))
        self.policy.ban([])  # TRL bans no tokens
        self.policy.add_adapter(self.spec.model.lora, seed=0)
        self.optimizer = adapter_optimizer(self.policy.trainable(), LEARNING_RATE, 0.0)
        self.shuffle = torch.Generator().manual_seed(0)
        self.frames = {frame_hash(row.frame): row.frame for row in rows}
        unknown = [
            Sample(tuple(row.prompt), tuple(row.completion), (), (frame_hash(row.frame),), "v", row.advantage)
            for row in rows
        ]
        self.samples = []
        with torch.no_grad():
            self.features = encode(self.policy, unknown, self.frames)
            for sample in unknown:
                values, _ = self.policy.logprobs([sample], self.features, 1.0)
                self.samples.append(
                    Sample(
                        sample.prompt_ids,
                        sample.completion_ids,
                        tuple(values.tolist()),
                        sample.images,
                        "v",
                        sample.advantage,
                    )
                )

    def logprobs(self) -> list[float]:
        """Of the first rows, before any update."""
        return [value for sample in self.samples[:4] for value in sample.logprobs]

    def iteration(self) -> None:
        self._update({})

    def update(self) -> None:
        self._update(self.features)

    def _update(self, features: dict[str, Any]) -> None:
        from visionrl_trainer.algo.update import update

        update(self.policy, self.optimizer, self.samples, self.frames, self.spec, self.shuffle, features=features)


def trl(shape: Shape, directory: Path, rows: Sequence[Row], checkpointing: bool) -> Trl:
    """TRL's side of a shape, as transformers loads its model."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    processor = AutoProcessor.from_pretrained(directory, padding_side="left")
    return Trl(model, processor, rows, shape.micro, checkpointing)


def worker(side: str, shape: Shape, model: Path, rows_file: Path) -> None:
    """Answer the commands of standard input: a line of JSON each."""
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    rows = pickle.loads(rows_file.read_bytes())
    made: Any = Ours(shape, model, rows) if side == "ours" else trl(shape, model, rows, side == "trl-checkpointing")
    loaded = memory_mib("VmRSS")
    print(json.dumps({"value": made.logprobs()}), file=answers, flush=True)
    for line in sys.stdin:
        forget_peak()
        began = time.process_time()
        getattr(made, line.strip())()
        seconds, peak = time.process_time() - began, memory_mib("VmHWM")
        print(json.dumps({"seconds": seconds, "over": peak - loaded, "peak": peak}), file=answers, flush=True)


class Worker:
    """The process of a side."""

    def __init__(self, side: str, arguments: Sequence[str]) -> None:
        python = sys.executable if side == "ours" else str(TRL_PYTHON)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        command = [python, "-m", "tests.bench.trainer", "--worker", side, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        self.logprobs = self._answer()["value"]

    def do(self, command: str) -> dict[str, float]:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended early; what it said is above")
        return json.loads(line)


def core_gflops() -> float:
    """One core's float32 matrix product, in billions of operations a second: the best of a few."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(12):
        began = time.process_time()
        torch.mm(left, right)
        seconds.append(time.process_time() - began)
    return 2 * 1024**3 / min(seconds) / 1e9


def measure(name: str, sides: Sequence[str], rounds: int) -> dict[str, Any]:
    """The figures of one shape."""
    from safetensors import safe_open

    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as scratch:
        model = build(shape, Path(scratch))
        rows = make_rows(shape, model)
        rows_file = Path(scratch, "rows")
        rows_file.write_bytes(pickle.dumps(rows))
        with safe_open(model / "model.safetensors", "pt") as file:
            sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118, it is no mapping
        linear = sum(s[0] * s[1] for key, s in sizes.items() if "language_model.layers" in key and len(s) == 2)
        head = next(s[0] * s[1] for key, s in sizes.items() if "embed_tokens" in key)
        arguments = ["--shape", name, "--model", str(model), "--rows", str(rows_file)]
        workers = {side: Worker(side, arguments) for side in sides}
        found: dict[str, dict[str, list[dict[str, float]]]] = {s: {"iteration": [], "update": []} for s in sides}
        for round_ in range(-1, rounds):
            for side in sides if round_ % 2 else reversed(sides):
                for what in ("iteration", "update"):
                    answer = workers[side].do(what)
                    if round_ >= 0:
                        found[side][what].append(answer)
        for each in workers.values():
            each.close()
    prompt, completion = (sum(len(getattr(row, part)) for row in rows) for part in ("prompt", "completion"))
    gflops, operations = core_gflops(), 4 * (linear * (prompt + completion) + head * completion)
    result: dict[str, Any] = {}
    for side, by in found.items():
        seconds = [answer["seconds"] for answer in by["iteration"]]
        result[side] = {
            "iteration_s": round(median(seconds), 3),
            "spread": round(spread(seconds), 3),
            "update_s": round(median([answer["seconds"] for answer in by["update"]]), 3),
            "tokens_per_s": round((prompt + completion) / median(seconds)),
            "mfu": round(operations / median(seconds) / gflops / 1e9, 3),
            "peak_over_loaded_mib": round(max(answer["over"] for answer in by["iteration"])),
            "peak_mib": round(max(answer["peak"] for answer in by["iteration"])),
            "logprobs_differ_by": float(np.abs(np.subtract(workers[side].logprobs, workers[sides[0]].logprobs)).max()),
        }
    first = result[sides[0]]
    return {
        "rows": len(rows),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "linear_parameters": linear,
        "core_gflops": round(gflops, 1),
        "sides": result,
        "over_ours": {
            side: {
                "iteration": round(result[side]["iteration_s"] / first["iteration_s"], 2),
                "waited": round(result[side]["iteration_s"] / first["update_s"], 2),
                "update_alone": round(result[side]["update_s"] / first["update_s"], 2),
                "peak_over_loaded": round(result[side]["peak_over_loaded_mib"] / first["peak_over_loaded_mib"], 2),
            }
            for side in sides[1:]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="the first is compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    for hidden in ("--worker", "--model", "--rows"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, SHAPES[arguments.shape[0]], Path(arguments.model), Path(arguments.rows))
        return
    sides = [side for side in arguments.sides if side == "ours" or TRL_PYTHON.exists()]
    shapes = {}
    for name in arguments.shape:
        shapes[name] = measure(name, sides, arguments.rounds)
        print(f"{name}: {shapes[name]['rows']} rows, {shapes[name]['prompt_tokens']} prompt tokens, {machine()}")
        print(f"{'':20}{'CPU s':>9}{'spread':>8}{'tokens/s':>10}{'MFU':>7}{'MiB over loaded':>17}")
        for side, row in shapes[name]["sides"].items():
            print(
                f"{side:20}{row['iteration_s']:9.3f}{row['spread']:8.0%}{row['tokens_per_s']:10,}{row['mfu']:7.0%}"
                f"{row['peak_over_loaded_mib']:17,}",
                flush=True,
            )
    write(arguments.json, "trainer", {"shapes": shapes})


if __name__ == "__main__":
    main()
