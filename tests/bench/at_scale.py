"""The learning recipe on a model of about 70 times the tiny one's size: does what is learned on a laptop hold there?

    python -m tests.bench.at_scale [--size small|large] [--iterations 8] [--minutes 5] [--runs DIR] [--json FILE]

configs/crafter-learn.yaml with another shape of its model and larger batches, run by ``visionrl run`` with all its
checks: the scripted player's episodes, supervised steps from random weights, reinforcement learning, and an evaluation
on the file's held-out seeds before and after. The server is tests/support/sampling_inference.py, so that a machine
without vLLM can do it; where there is a GPU, trainer and server share it.

What is known is printed, and written to the JSON file, whenever there is news. When ``--minutes`` are nearly over, the
iterations that are left are dropped, so that the evaluation after them still takes place; when they are over, the run
is stopped in order, and what is known by then is the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from recipes.learn.jobs import write_derived
from tests.bench.common import machine, write
from visionrl.status import Score
from visionrl_local.folder import tail
from visionrl_local.gpus import visible_gpus
from visionrl_trainer.rollout.evaluate import paired_gain
from visionrl_trainer.state.metrics import MetricsFile

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "crafter-learn.yaml"
NAME = "at-scale"
POLL_SECONDS = 0.5
STOP_SECONDS = 20.0
"""How long a run may take to end in order."""
EVALUATING = "Running: playing"
"""What the status says first of an evaluation (:func:`stage`)."""
RESERVE, END_SECONDS = 1.15, 12.0
"""The last evaluation is expected to take so many times the first; the film, the report and the end follow it."""
ROLLOUTS = re.compile(r"sampled (\d+) rows of (\d+) tokens, (\d+) tokens in ([\d.]+) s")
LARGE = {
    "hiddenSize": 384,
    "layers": 8,
    "heads": 12,
    "intermediateSize": 1536,
    "visionHiddenSize": 256,
    "visionDepth": 2,
}
"""21 million parameters; the tiny model has 0.3."""


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """What differs from the learn job, by dotted path below ``spec``."""
    found: dict[str, Any] = {
        "model.tiny": LARGE if options.size == "large" else {},
        "rollout.maxConcurrent": options.concurrent,
        "training.iterations": options.iterations,
        "training.learningRate": options.learning_rate,
        "training.microBatchTokens": options.micro_batch_tokens,
        "training.warmStart.episodes": options.teacher_episodes,
        "training.warmStart.steps": options.steps,
        "training.warmStart.batchSize": options.batch_size,
        "evaluation.episodes": options.evaluation_episodes,
        # A failure that repeats itself shall not take the minutes that are left.
        "failurePolicy": {"maxRestarts": 1, "backoffSeconds": 1},
    }
    if options.groups is not None:
        found["training.groupsPerIteration"] = options.groups
    if options.turns is not None:
        found |= {"rollout.policyConfig.maxLlmCalls": options.turns, "training.warmStart.turns": options.turns}
    if visible_gpus():
        found["trainer.gpu"] = {"products": []}
    return found


def parameters(base: Path) -> int | None:
    """Of a model's directory; None where it is not there yet."""
    file = base / "model.safetensors"
    if not file.exists():
        return None
    with safe_open(file, framework="np") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


class Scaled:
    """The job, its run folder, and what is known of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.monotonic()
        self.runs: Path = options.runs
        self.file, self.root = self.runs / f"{NAME}.yaml", self.runs / NAME
        self.output = self.runs / "output.log"
        self.changes = changes(options)
        self.first_seen: dict[str, float] = {}
        """Seconds after the begin at which a phase of the run was first seen."""
        self.considered, self.cut = 0, False
        """Iterations that were done when the time left was last looked at, and whether some were dropped."""
        self.exit_code: int | None = None
        self._told: set[str] = set()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return float(60 * self.options.minutes - self.seconds)

    def tell(self, text: str) -> None:
        """Print a line once."""
        if text not in self._told:
            self._told.add(text)
            print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    # --- the run

    def run(self) -> int:
        """Run the job until it is finished or the time is over."""
        self.write_job()
        with self.output.open("ab") as output:
            command = [sys.executable, "-m", "tests.support.sampling_run", self.file, "--runs", self.runs]
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment())
        try:
            while process.poll() is None and self.left > 0:
                time.sleep(POLL_SECONDS)
                self.look()
                self.finish_in_time()
            if process.poll() is None:
                self.tell("the time is over: stopping")
                process.send_signal(signal.SIGINT)
                process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.tell(f"the run did not end within {STOP_SECONDS:.0f} s")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # the second one kills its components, too
                process.wait(STOP_SECONDS)
        self.exit_code = process.returncode
        self.look()
        write(self.options.json, NAME, self.result())
        if self.exit_code:
            self._show_logs()
        return 0 if "gain" in self.result() else 1

    def write_job(self) -> None:
        """Write the job's file; a running job reads the number of its iterations again."""
        write_derived(FILE, NAME, self.changes, self.file)

    def finish_in_time(self) -> None:
        """Drop iterations for which no time is left beside the last evaluation."""
        metrics, evaluations = self.metrics(), self.evaluations()
        if self.cut or len(metrics) in (0, self.considered) or len(evaluations) != 1:
            return
        self.considered = len(metrics)
        # What the first iteration counts as publishing is the start of the server.
        publishing = metrics[-1]["sync_seconds"] if len(metrics) > 1 else 0.0
        each = max(record["seconds"] for record in metrics[-2:]) + publishing
        needed = 2 * each + RESERVE * self._evaluation_seconds() + END_SECONDS
        if len(metrics) + 1 < self.options.iterations and self.left < needed:
            self.cut = True
            self.changes["training.iterations"] = len(metrics) + 1
            self.write_job()
            self.tell(f"the time is nearly over: {len(metrics) + 1} iterations instead of {self.options.iterations}")

    def _evaluation_seconds(self) -> float:
        began = self.first_seen.get(EVALUATING, 0.0)
        return self.first_seen.get("first evaluation", began) - began

    def _show_logs(self) -> None:
        for log in (self.output, *sorted((self.root / "logs").glob("*.log"))):
            print(f"--- {log}", *(tail(log, 25) if log.exists() else []), sep="\n", flush=True)

    # --- what is known

    def look(self) -> None:
        """Tell and write what is new."""
        told = len(self._told)
        status = read_json(self.root / "status.json") or {}
        if doing := stage(status):
            self.first_seen.setdefault(doing, self.seconds)
            self.tell(doing)
        for step in self.supervised()[-1:]:
            self.first_seen.setdefault("first supervised report", self.seconds)
            if step["validation_loss"] is not None:
                self.tell(
                    f"supervised step {step['step']}: loss {step['loss']:.3f}, validation {step['validation_loss']:.3f}"
                )
        for each in self.evaluations():
            name = "first evaluation" if each["iteration"] == 0 else "last evaluation"
            self.first_seen.setdefault(name, self.seconds)
            self.tell(
                f"evaluation after {each['iteration']} iterations: {shown(each)}, {each['invalid_rate']:.1%} invalid"
            )
        for record in self.metrics():
            self.tell(iteration_line(record))
        if len(self._told) > told:
            write(self.options.json, NAME, self.result())

    def metrics(self) -> list[dict[str, Any]]:
        return MetricsFile(self.root / "metrics.jsonl", "iteration").records()

    def evaluations(self) -> list[dict[str, Any]]:
        return MetricsFile(self.root / "evaluations.jsonl", "iteration").records()

    def supervised(self) -> list[dict[str, Any]]:
        return MetricsFile(self.root / "warm-start" / "metrics.jsonl", "step").records()

    def result(self) -> dict[str, Any]:
        """Everything that is known now."""
        metrics, evaluations, steps = self.metrics(), self.evaluations(), self.supervised()
        found: dict[str, Any] = {
            "parameters": parameters(self.root / "base"),
            "facts": read_json(self.root / "facts.json"),
            "changes": self.changes,
            "seconds": round(self.seconds, 1),
            "first_seen": {name: round(seconds, 1) for name, seconds in self.first_seen.items()},
            "exit_code": self.exit_code,
            "cut": self.cut,
            "phase_seconds": (read_json(self.root / "summary.json") or {}).get("seconds"),
            "iterations": [compact(record) for record in metrics],
            "evaluations": [
                {name: each[name] for name in ("iteration", "mean", "low", "high", "episodes", "invalid_rate", "rates")}
                for each in evaluations
            ],
            "sampling": self.sampling(),
        }
        if steps:
            found["supervised"] = [each for each in steps if each["validation_loss"] is not None]
        if len(evaluations) > 1:
            found["gain"] = gain(evaluations[0], evaluations[-1]).model_dump()
        return found

    def sampling(self) -> dict[str, float]:
        """The server's batches, summed up."""
        log = self.root / "logs" / "inference.log"
        lines = ROLLOUTS.findall(log.read_text(errors="replace")) if log.exists() else []
        batches = [(int(rows), int(prompt), int(tokens), float(seconds)) for rows, prompt, tokens, seconds in lines]
        if not batches:
            return {}
        seconds = sum(each[3] for each in batches)
        rows, tokens = sum(each[0] for each in batches), sum(each[2] for each in batches)
        computed = tokens + sum(each[0] * each[1] for each in batches)
        return {
            "batches": len(batches),
            "rows": rows,
            "rows_per_batch": round(rows / len(batches), 1),
            "busy_seconds": round(seconds, 1),
            "sampled_tokens_per_s": round(tokens / seconds),
            "tokens_per_s": round(computed / seconds),
        }


def stage(status: dict[str, Any]) -> str:
    """What a job does, as its status says, without its figures; empty before the first status."""
    doing = re.split(r"\d", status.get("reason") or "")[0].strip(" :")
    return f"{status['phase']}: {doing}" if status.get("phase") else ""


def environment() -> dict[str, str]:
    """The run's: threads that spin take cores from the other components, and one GPU serves two of them."""
    return {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def gain(before: dict[str, Any], after: dict[str, Any]) -> Score:
    """Paired over the seeds that both played."""
    earlier, later = (dict(zip(each["seeds"], each["returns"], strict=True)) for each in (before, after))
    seeds = sorted(earlier.keys() & later.keys())
    return paired_gain([earlier[seed] for seed in seeds], [later[seed] for seed in seeds])


def compact(record: dict[str, Any]) -> dict[str, Any]:
    """What matters of an iteration, with the trainer's speed."""
    names = (
        "iteration reward reward_std invalid_rate episodes turns tokens updates mismatch_kl mismatch_max entropy "
        "clip_fraction ratio_max grad_norm masked_rate zero_variance_groups seconds sync_seconds phase_seconds"
    )
    found = {name: record[name] for name in names.split() if name in record}
    return found | {"decisions_per_update_s": round(record["turns"] / max(record["phase_seconds"]["update"], 1e-3), 1)}


def iteration_line(record: dict[str, Any]) -> str:
    seconds = record["phase_seconds"]
    learned = (
        "no update"
        if not record["updates"]
        else (
            f"mismatch KL {record['mismatch_kl']:.1e}, clipped {record['clip_fraction']:.1%}, "
            f"entropy {record['entropy']:.2f}"
        )
    )
    return (
        f"iteration {record['iteration']}: return {record['reward']:.2f}, {record['invalid_rate']:.1%} invalid, "
        f"{learned}; {record['turns']} decisions, {seconds['rollout']:.1f} s playing, {seconds['update']:.1f} s "
        f"learning, {record['sync_seconds']:.1f} s publishing before"
    )


def shown(score: dict[str, Any]) -> str:
    return f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}] on {score['episodes']} seeds"


def read_json(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "large"), default="large", help="default: large")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the run; default: 5")
    parser.add_argument("--runs", type=Path, help="folder of the run; default: a new one that is deleted")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of reinforcement learning; default: 1e-3")
    parser.add_argument("--micro-batch-tokens", type=int, default=32_768)
    parser.add_argument("--concurrent", type=int, default=300, help="episodes at once; default: 300")
    parser.add_argument("--teacher-episodes", type=int, default=600, help="default: 600, as the file says")
    parser.add_argument("--steps", type=int, default=800, help="supervised steps; default: 800")
    parser.add_argument("--batch-size", type=int, default=64, help="decisions of a supervised step; default: 64")
    parser.add_argument("--evaluation-episodes", type=int, default=200, help="default: 200")
    parser.add_argument("--groups", type=int, help="of 8 episodes, an iteration; default: as the file says")
    parser.add_argument("--turns", type=int, help="of an episode; default: as the file says")
    return parser.parse_args(words)


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        options.runs = (options.runs or Path(folder)).resolve()
        options.runs.mkdir(parents=True, exist_ok=True)
        scaled = Scaled(options)
        code, found = scaled.run(), scaled.result()
    print(json.dumps({name: found[name] for name in ("evaluations", "gain", "sampling", "seconds") if name in found}))
    print(json.dumps(machine()))
    return code


if __name__ == "__main__":
    sys.exit(main())
