"""``make soak``: kills and freezes every process of a small job again and again, and counts what that costs.

The job is real (supervisor, task app, trainer, vLLM); ``--inference exact`` puts a server with exact logprobs in vLLM's
place, which starts faster. The faults are seeded: SIGKILL or SIGSTOP to the supervisor, to a component, to the guard of
a component or to a child of one. A fault counts as recovered when the processes that it hit are gone and an iteration
that began after that is complete. A supervisor that is killed is started again, as a service manager or a person would;
one that is frozen is continued after a while.

At the end the job is stopped in order and run to its end once more, and the run's own records are compared: every
iteration once and with all its episodes, as many steps of the optimizer as they note, no process left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from ruamel.yaml import YAML

from visionrl_local.processes import Supervisor, left_behind

COMPONENTS = ("taskApp", "inference", "trainer")
GROUPS, GROUP_SIZE = 2, 4
PATIENCE_SECONDS = 300.0
"""How long a recovery may take before the soak fails."""
FROZEN_SUPERVISOR_SECONDS = 20.0
EXIT_CODES = [137, 0]
"""Of what is killed, and of vLLM after its engine was killed."""
START_SECONDS = 1800.0
"""How long the first iteration may take: warm start, evaluation and kernels come before it."""

JOB: dict[str, Any] = {
    "apiVersion": "visionrl.dev/v1alpha1",
    "kind": "VisionRLJob",
    "metadata": {"name": "soak"},
    "spec": {
        "algorithm": {"loss": "grpo", "advantage": "turn", "scale": "batch"},
        "model": {"base": "tiny", "dtype": "float32", "lora": {"r": 8, "alpha": 16}},
        "inference": {"vllm": {"maxModelLen": 512, "maxNumSeqs": 8}},
        "rollout": {
            "maxConcurrent": 8,
            "envConfig": {"imageSize": 144},
            "policyConfig": {
                "systemPrompt": "Play Crafter.",
                "maxTokens": 16,
                "maxLlmCalls": 4,
                "maxActions": 4,
                "historyTurns": 0,
            },
        },
        "training": {
            "iterations": 1_000_000,
            "groupsPerIteration": GROUPS,
            "groupSize": GROUP_SIZE,
            "learningRate": 1e-4,
            "guards": {"maxInvalidRate": None},
            "rewards": {"invalidPenalty": 0.25},
            # Enough for some valid actions: without any, all episodes earn the same, and no iteration makes a step.
            "warmStart": {"episodes": 20, "steps": 120, "turns": 20, "optimizer": "muon"},
        },
        "evaluation": {"episodes": 1},
        # What is killed here may fail as often as it is killed; any other failure counts.
        "failurePolicy": {
            "backoffSeconds": 0.2,
            "rules": [{"exitCodes": EXIT_CODES, "action": "RestartIgnoreLimit"}],
        },
    },
}


@dataclass(frozen=True)
class Fault:
    """One fault."""

    target: str
    signal: str
    found: float
    """Seconds until the processes that it hit were gone (or continued)."""
    recovered: float
    """Seconds until an iteration that began after that was complete."""


@dataclass
class Memory:
    """Resident memory of one process over its life, in bytes."""

    name: str
    samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the first sample after the start-up to the last one."""
        return self.settled[-1][0] - self.settled[0][0] if self.settled else 0.0

    @property
    def growth(self) -> int:
        return self.settled[-1][1] - self.settled[0][1] if self.settled else 0

    @property
    def settled(self) -> list[tuple[float, int]]:
        return [sample for sample in self.samples if sample[0] - self.samples[0][0] >= 30.0]


class Soak:
    """A job in a folder, and what is done to it."""

    def __init__(self, folder: Path, exact: bool, seed: int) -> None:
        self.folder, self.exact, self.random = folder, exact, random.Random(seed)
        self.root = folder / "runs" / "soak"
        self.file = folder / "job.yaml"
        self.faults: list[Fault] = []
        self.memory: dict[tuple[int, float], Memory] = {}
        self.orphans: dict[int, str] = {}
        """Process ids and components of what was left after an end."""
        self._write_job(JOB)

    # --- the job

    def start(self) -> None:
        exact = [sys.executable, "-m", "tests.support.exact_run"]
        program = exact if self.exact else [Path(sys.executable).with_name("visionrl"), "run"]
        with (self.folder / "output.log").open("ab") as output:
            self.process = subprocess.Popen(
                [*program, self.file, "--runs", self.root.parent],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def iterations(self) -> int:
        try:
            return (self.root / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true in time, and before the supervisor ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            if self.process.poll() is not None:
                return False
            self._sample_memory()
            time.sleep(0.2)
        return True

    def _write_job(self, document: dict[str, Any]) -> None:
        draft = self.file.with_suffix(".draft")
        with draft.open("w") as stream:
            YAML().dump(document, stream)
        draft.replace(self.file)

    # --- faults

    def run(self, minutes: float) -> str:
        """Inject faults for so long, then finish the job; why it failed, empty where it did not."""
        self.start()
        if not self.wait(lambda: self.iterations() >= 1, START_SECONDS):
            return "no first iteration"
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            self.wait(lambda: False, self.random.uniform(2, 15))
            if self.process.poll() is not None:
                return f"the supervisor ended by itself: exit code {self.process.returncode}"
            if not self._fault():
                return f"no recovery from {self.faults[-1].signal} to {self.faults[-1].target}"
        return self._finish()

    def _fault(self) -> bool:
        """One fault; whether the job recovered."""
        kind = self.random.choice((signal.SIGKILL, signal.SIGSTOP))
        names = ["supervisor", *COMPONENTS, *(f"guard of {name}" for name in COMPONENTS), "child of inference"]
        target = self.random.choice(names)
        processes = self._processes(target)
        if not processes:  # it is just starting, or has no children
            return True
        started = time.monotonic()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(kind)
        if target == "supervisor" and kind == signal.SIGSTOP:
            time.sleep(FROZEN_SUPERVISOR_SECONDS)
            self.process.send_signal(signal.SIGCONT)
        elif target == "supervisor":
            self.process.wait()
            self.start()
        else:
            self.wait(lambda: not any(_alive(process) for process in processes), PATIENCE_SECONDS)
        found, before = time.monotonic() - started, self.iterations()
        recovered = self.wait(lambda: self.iterations() > before + 1, PATIENCE_SECONDS)
        fault = Fault(target, kind.name, found, time.monotonic() - started)
        self.faults.append(fault)
        row = f"{len(self.faults):4}  {kind.name} {target:20} iteration {before:5}"
        print(f"{row}  gone after {found:5.1f} s, recovered after {fault.recovered:5.1f} s", flush=True)
        return recovered

    def _processes(self, target: str) -> list[psutil.Process]:
        """The processes of a target, as they are now."""
        if target == "supervisor":
            return [psutil.Process(self.process.pid)]
        found = []
        for guard in psutil.Process(self.process.pid).children():
            try:
                component = re.search(r" (\w+) /", guard.environ()["VISIONRL_LOCAL_PROCESS"])
                commands = guard.children()
                names = {"guard": [guard], "": commands, "child": [c for each in commands for c in each.children()]}
            except (psutil.Error, KeyError):
                continue
            for prefix, processes in names.items():
                if component and target == (f"{prefix} of {component[1]}" if prefix else component[1]):
                    found += processes
        return found

    def _finish(self) -> str:
        """Stop in order, look for processes that are left, then run the job to its end."""
        self.process.send_signal(signal.SIGINT)
        if self.process.wait(PATIENCE_SECONDS) != 128 + signal.SIGINT:
            return f"the orderly stop ended with {self.process.returncode}"
        self.orphans = left_behind(Supervisor(self.root))
        self._write_job(_with_iterations(JOB, self.iterations() + 2))
        self.start()
        code = self.process.wait(PATIENCE_SECONDS)
        self.orphans |= left_behind(Supervisor(self.root))
        return f"the job ended with {code}" if code else ""

    def stop(self) -> None:
        """Nothing of the soak runs afterwards, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in left_behind(Supervisor(self.root)):
            os.kill(pid, signal.SIGKILL)

    def _sample_memory(self) -> None:
        now = time.monotonic()
        if self.memory and now - max(memory.samples[-1][0] for memory in self.memory.values()) < 5.0:
            return
        for name in ("supervisor", *COMPONENTS):
            for process in self._processes(name):
                try:
                    key, size = (process.pid, process.create_time()), process.memory_info().rss
                except psutil.Error:
                    continue
                self.memory.setdefault(key, Memory(name)).samples.append((now, size))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _with_iterations(document: dict[str, Any], iterations: int) -> dict[str, Any]:
    spec = document["spec"]
    return {**document, "spec": {**spec, "training": {**spec["training"], "iterations": iterations}}}


# --- the records of the run


@dataclass(frozen=True)
class Records:
    """What the run's own records say of its samples (episodes)."""

    iterations: int
    lost: int
    """Episodes that should have been trained on and were not."""
    doubled: int
    """Episodes that were trained on more than once."""
    replayed: int
    """Episodes that were played again under a later version, because a kill came between playing and training."""


def read_records(root: Path) -> Records:
    """Compare metrics, the last checkpoint and traces. Raises ``KeyError`` where there is no checkpoint of the end."""
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    numbers = [line["iteration"] for line in lines]
    last, per_iteration = max(numbers), GROUPS * GROUP_SIZE
    missing = set(range(1, last + 1)) - set(numbers)
    lost = len(missing) * per_iteration + sum(per_iteration - line["episodes"] for line in lines)
    doubled = (len(numbers) - len(set(numbers))) * per_iteration

    states = {json.loads(path.read_text())["iteration"]: path for path in (root / "checkpoints").glob("*/state.json")}
    saved = torch.load(states[last].with_name("optimizer.pt"), weights_only=True)
    made = max((int(state["step"]) for state in saved["optimizer"]["state"].values()), default=0)
    noted = sum(line.get("updates", 1) for line in lines)  # an iteration without a signal makes no step
    lost += max(0, noted - made) * per_iteration
    doubled += max(0, made - noted) * per_iteration

    played: dict[int, dict[str, set[str]]] = {}
    with sqlite3.connect(root / "traces.db") as traces:
        for (run_id,) in traces.execute("SELECT session_id FROM session_traces"):
            if match := re.fullmatch(r"soak/(?P<version>[^/]+)/i(?P<iteration>\d+)/(?P<place>.+)", run_id):
                versions = played.setdefault(int(match["iteration"]), {})
                versions.setdefault(match["version"], set()).add(match["place"])
    replayed = sum(len(places) for versions in played.values() for places in list(versions.values())[1:])
    return Records(last, lost, doubled, replayed)


# --- the command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long faults are injected (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default: 1)")
    parser.add_argument("--inference", choices=("vllm", "exact"), default="vllm", help="default: vllm")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="visionrl-soak-"))
    soak = Soak(folder, options.inference == "exact", options.seed)
    try:
        failure = soak.run(options.minutes)
        problems = report(soak, failure)
    finally:
        soak.stop()
    if problems:
        print(f"FAILED: {'; '.join(problems)}\nkept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def report(soak: Soak, failure: str) -> list[str]:
    """Print what the soak measured; what is not as it should be."""
    problems = [failure] if failure else []
    times = sorted(fault.recovered for fault in soak.faults)
    frozen = sorted(f.found for f in soak.faults if f.signal == "SIGSTOP" and f.target != "supervisor")
    print(f"faults                 {len(soak.faults)}")
    if times:
        print(f"recoveries             {len(times) - bool(failure)}")
        print(f"time to recover        p50 {statistics.median(times):.1f} s, max {times[-1]:.1f} s")
    if frozen:
        print(f"a freeze is found      p50 {statistics.median(frozen):.1f} s, max {frozen[-1]:.1f} s")
    for name in ("supervisor", *COMPONENTS):
        lives = [memory for memory in soak.memory.values() if memory.name == name and memory.settled]
        if lives:
            longest = max(lives, key=lambda memory: memory.seconds)
            print(f"memory of {name:12} {longest.growth / 1e6:+.1f} MB in its longest life, {longest.seconds:.0f} s")
    if not failure:
        records = read_records(soak.root)
        print(f"iterations             {records.iterations}")
        print(f"samples                {records.lost} lost, {records.doubled} doubled, {records.replayed} played again")
        print(f"orphans                {len(soak.orphans)}")
        problems += [f"{records.lost} samples lost"] if records.lost else []
        problems += [f"{records.doubled} samples doubled"] if records.doubled else []
        problems += [f"processes left: {soak.orphans}"] if soak.orphans else []
    return problems


if __name__ == "__main__":
    sys.exit(main())
