"""SIGKILL before every write of a trainer: ``python -m tests.faults.trainer_kills SCENARIO FOLDER FIRST STEP TWICE``.

All of it is the trainer's own, but for the task app, whose episodes are a function of the iteration, and for the
inference server, which only looks whether it could fetch the version. One process loads torch and the model, and forks
for every attempt. It prints a JSON object per kill: the write before which the process died, and what is wrong with
what the attempts after it made of the run (nothing, that is).
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.support.jobs import job
from tests.support.until import until
from tests.unit.trainer.test_intake import decision, png, response
from visionrl.adapters import Version, verified_manifest
from visionrl.component import ComponentContext
from visionrl.crafter import ACTIONS
from visionrl.frames import frame_hash
from visionrl.job import Job, TinyModel
from visionrl.rollout import RewardSplit, RolloutRequest, RolloutResponse
from visionrl.status import TrainerReport
from visionrl.tiny.model import build_tiny
from visionrl.tools import tool_call_text
from visionrl_trainer import train
from visionrl_trainer.algo.advantages import with_advantages
from visionrl_trainer.algo.update import update
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.report.films import Film
from visionrl_trainer.rollout.batch import Group, Sample
from visionrl_trainer.rollout.evaluate import EpisodeScore, EvaluationResult
from visionrl_trainer.state.metrics import MetricsFile
from visionrl_trainer.state.run import RunStore, Snapshot
from visionrl_trainer.sync.service import StatusPublisher

SIZE, UPDATES = 80, 2
SCENARIOS: dict[str, dict[str, Any]] = {
    "checkpoint-every-1": {"training.checkpointEvery": 1, "evaluation.everyIterations": 2},
    "checkpoint-every-3": {"training.checkpointEvery": 3, "training.maxStaleness": 2},
    "warm-start": {"training.iterations": 1, "training.warmStart": {"trains": "adapter", "steps": 3, "batchSize": 1}},
}


def scenario_job(scenario: str, data: Path) -> Job:
    changes: dict[str, Any] = {
        "tracking": {"tensorboard": False},  # its thread writes when it likes
        "model.dtype": "float32",
        "model.lora": {"r": 2, "alpha": 4},
        "rollout.envConfig": {"imageSize": SIZE},
        "training.learningRate": 1e-3,
        "training.groupsPerIteration": 1,
        "training.groupSize": 2,
        "training.updatesPerIteration": UPDATES,
        "evaluation.episodes": 2,
        **SCENARIOS[scenario],
    }
    if "training.warmStart" in changes:
        changes["training.warmStart"] = {**changes["training.warmStart"], "data": {"train": str(data)}}
    return job(changes)


@dataclass(frozen=True)
class Ledger:
    """What the attempts of one run did, in order: outside the run folder, through a descriptor that is open already."""

    file: Path
    descriptor: int

    def note(self, what: str, value: object) -> None:
        os.write(self.descriptor, json.dumps([what, value]).encode() + b"\n")

    def entries(self) -> list[tuple[str, Any]]:
        return [(what, value) for what, value in map(json.loads, self.file.read_text().splitlines())]

    def values(self, what: str) -> list[Any]:
        return [value for each, value in self.entries() if each == what]


class Writes:
    """Counts the file system's changes by this process, and kills it before the one with number ``fatal``."""

    def __init__(self, fatal: int, ledger: Ledger) -> None:
        self.fatal, self.ledger, self.count = fatal, ledger, 0
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self._about_to("fsync")
            fsync(descriptor)

        mock.patch("os.fsync", counted).start()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            self._about_to(f"{event.removeprefix('os.')} {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self._about_to(f"open {arguments[0]}")

    def _about_to(self, write: str) -> None:
        self.count += 1
        if self.count == self.fatal:
            self.ledger.note("killed before", write)
            os.kill(os.getpid(), signal.SIGKILL)


# --- an attempt


class Trainer:
    """The model, loaded once, and a trainer around it."""

    def __init__(self, scenario: str, folder: Path) -> None:
        self.job = scenario_job(scenario, folder / "train.jsonl")
        self.cache = folder / "cache"
        (folder / "train.jsonl").write_text(demonstration())
        self.job_file, self.key_file = folder / "job.json", folder / "key"
        self.key_file.write_text("key")
        self.job_file.write_text(self.job.model_dump_json(by_alias=True))
        base = build_tiny(TinyModel(), self.job.spec.rollout.env_config, self.cache)
        self.policy, self.server = (Policy.load(base, "float32", torch.device("cpu")) for _ in range(2))
        """What is trained, and what plays: the published versions, as an inference server loads them."""
        self.publisher = StatusPublisher(TrainerReport(phase="Starting"))
        self.server.add_adapter(self.job.spec.model.lora, seed=0)

    def attempt(self, run: Path, fatal: int, ledger: Ledger) -> int:
        """Train in a process of its own until the end, or until write number ``fatal``; the exit code."""
        child = os.fork()
        if child == 0:
            try:
                if fatal:
                    Writes(fatal, ledger)
                asyncio.run(self._train(run, ledger))
                ledger.note("complete", True)
                os._exit(0)
            except BaseException:
                ledger.note("failed", traceback.format_exc())
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    async def _train(self, run: Path, ledger: Ledger) -> None:
        replace_the_world(self, run, ledger)
        variables = {
            "VISIONRL_JOB": str(self.job_file),
            "VISIONRL_RUN_DIR": str(run),
            "VISIONRL_CACHE_DIR": str(self.cache),
            "VISIONRL_KEY_FILE": str(self.key_file),
            "VISIONRL_TASKAPP_URL": "http://127.0.0.1:9",
            "VISIONRL_INFERENCE_URL": "http://127.0.0.1:9",
        }
        await train.run(ComponentContext(variables), self.job, self.publisher)


def replace_the_world(trainer: Trainer, run: Path, ledger: Ledger) -> None:
    """Put stand-ins in the places of the model's files, the task app and the inference server, and witnesses beside
    what the trainer does. In a process that does nothing else."""
    resume, checkpoint, append = RunStore.resume, RunStore.checkpoint, MetricsFile.append
    served: list[str] = []

    def witnessed_resume(store: RunStore, *arguments: Any) -> Any:
        state = resume(store, *arguments)
        ledger.note("resumed", -1 if state is None else state.iteration)
        return state

    def witnessed_checkpoint(store: RunStore, snapshot: Snapshot) -> None:
        checkpoint(store, snapshot)
        ledger.note("checkpoint", snapshot.state.iteration)

    def witnessed_append(file: MetricsFile, record: dict[str, Any]) -> None:
        append(file, record)
        if "policy" in record:
            ledger.note("evaluation kept", record["policy"])

    def witnessed_update(*arguments: Any) -> Any:
        stats = update(*arguments)
        ledger.note("updates", stats.updates)
        return stats

    def witnessed_learning(groups: list[Group], *arguments: Any) -> Any:
        ledger.note("learning", [episode.run_id for group in groups for episode in group.episodes])
        return with_advantages(groups, *arguments)

    async def rollout(taskapp: Any, request: RolloutRequest, patience: float) -> RolloutResponse:
        await asyncio.sleep(0)
        trainer.server.load_adapter(run / "adapters" / request.policy.config.model)
        return episode(trainer.server, request)

    async def push(sync: Any, policy: Policy, version: Version) -> None:
        manifest = sync.store.path(version.name, "manifest.json")
        assert manifest is not None, f"{version.name} cannot be fetched"
        assert version.matches(verified_manifest(manifest.parent)), f"{version.name} is other weights"
        ledger.note("served", version.name)
        served.append(version.name)

    async def evaluate(taskapp: Any, spec: Any, policy: Any, seeds: Any, *arguments: Any) -> EvaluationResult:
        """Lasts until a later version is served, or the training waits for it."""
        ledger.note("evaluated", policy.config.model)
        await until(lambda: served[-1] != policy.config.model or trainer.publisher.report.phase == "Evaluating")
        assert (run / "adapters" / policy.config.model).is_dir(), "deleted while it plays"
        scores = (score(seed, policy.config.model) for seed in seeds)
        return EvaluationResult(policy.config.model, tuple(scores))

    async def record(taskapp: Any, spec: Any, policy: Any, iteration: int) -> Film:
        return Film(iteration=iteration, policy=policy.config.model, seed=0, score=0, turns=[])

    replacements: dict[str, Any] = {
        "train.Policy.load": lambda *arguments, **named: trainer.policy,
        "preparation.locate_base": lambda *arguments: Path("base"),
        "train.RunStore.resume": witnessed_resume,
        "train.RunStore.checkpoint": witnessed_checkpoint,
        "train.update": witnessed_update,
        "train.with_advantages": witnessed_learning,
        "train.TaskApp.rollout": rollout,
        "train.WeightSync.push": push,
        "evaluator.evaluate.evaluate": evaluate,
        "evaluator.films.record": record,
        "train.FilmMaker.start": lambda *arguments: None,  # a thread would count its writes at any moment
        "state.metrics.MetricsFile.append": witnessed_append,
    }
    for name, replacement in replacements.items():
        mock.patch(f"visionrl_trainer.{name}", replacement).start()


def episode(server: Policy, request: RolloutRequest) -> RolloutResponse:
    """One decision, with another frame and answer in each episode of each iteration."""
    iteration, n = iteration_of(request.run_id), int(request.run_id.split("/")[-2].removeprefix("e"))
    tokenizer = server.processor.tokenizer
    visual = server.image_tokens(SIZE).per_image
    prompt = tuple(tokenizer.encode("<|vision_start|>" + "<|image_pad|>" * visual + "<|vision_end|>"))
    frame = np.full((SIZE, SIZE, 3), 40 * iteration + 20 * n, np.uint8)
    digest = frame_hash(frame)
    answer = tuple(tokenizer.encode(tool_call_text([ACTIONS[iteration + n]])))
    sample = Sample(prompt, answer, (), (digest,), request.policy.config.model)
    with torch.no_grad():
        logprobs_T, _ = server.logprobs([sample], {digest: server.encode_images([frame])[0]}, 1.0)
    played = decision(
        model=sample.model,
        images=[digest],
        prompt_token_ids=list(prompt),
        token_ids=list(answer),
        logprobs=logprobs_T.tolist(),
        reward=RewardSplit(event=float(n)),
    )
    return response([played], {digest: png(frame)}, float(n)).model_copy(update={"run_id": request.run_id})


def iteration_of(run_id: str) -> int:
    """2 of ``demo/demo-v000002-0123456789ab/i2/t0/g0/e1/r0``."""
    return int(run_id.split("/")[2].removeprefix("i"))


def score(seed: int, version: str) -> EpisodeScore:
    """A function of the policy, so that a result of another one is told from it."""
    value = int(version[-6:], 16) % 20 + seed
    return EpisodeScore(seed=seed, score=value, unlocked=(), turns=1, steps=1, invalid=0, env_return=0.0)


def demonstration() -> str:
    """A line of supervised data."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    prompt = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    return json.dumps({"messages": [prompt, {"role": "assistant", "content": tool_call_text(["noop"])}]}) + "\n"


# --- what must be true afterwards


@dataclass(frozen=True)
class Outcome:
    """What a run has learned, whatever happened on the way: equal for two runs that learned the same."""

    weights: str
    """Digest of the last version's content."""
    steps: tuple[int, ...]
    """Optimizer steps of each parameter, as the optimizer counts them."""
    iterations: tuple[int, ...]
    """As noted in ``metrics.jsonl``."""
    evaluations: tuple[tuple[int, str, float], ...]
    """Iteration, digest of the policy, mean."""

    @classmethod
    def of(cls, run: Path) -> Outcome:
        summary = json.loads((run / "summary.json").read_text())
        version = Version.parse(summary["adapter"])
        assert version.matches(verified_manifest(run / "adapters" / version.name)), "the result is damaged"
        saved = torch.load(run / "checkpoints" / version.name / "optimizer.pt", weights_only=True)
        steps = {int(state["step"]) for state in saved["optimizer"]["state"].values()}
        return cls(
            version.digest,
            tuple(sorted(steps)),
            tuple(record["iteration"] for record in records(run / "metrics.jsonl")),
            tuple(
                (record["iteration"], Version.parse(record["policy"]).digest, record["mean"])
                for record in records(run / "evaluations.jsonl")
            ),
        )


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def broken_promises(ledger: Ledger, expected: Outcome, run: Path) -> Iterator[str]:
    """What is wrong with a run that was killed and resumed."""
    yield from ledger.values("failed")
    if not ledger.values("complete"):
        yield "the run is not complete"
        return
    if (found := Outcome.of(run)) != expected:
        yield f"learned something else: {found}, expected {expected}"
    last, kept = -1, set()
    for what, value in ledger.entries():
        if what == "evaluation kept":
            kept.add(value)
        if what == "evaluated" and value in kept:
            yield f"the evaluation of {value} was lost"
        if what == "resumed" and value < last:
            yield f"iteration {last} was in a checkpoint, resumed from {value}"
        if what in ("resumed", "checkpoint"):
            last = value
    trained = lineage(ledger)
    noted = {record["iteration"] - 1: record["run_ids"] for record in records(run / "metrics.jsonl")}
    if noted != {iteration: learned.run_ids for iteration, learned in trained.items()}:
        yield f"metrics.jsonl has {noted}, trained was {trained}"
    run_ids = [run_id for learned in trained.values() for run_id in learned.run_ids]
    if len(run_ids) != 2 * len(expected.iterations) or len(set(run_ids)) != len(run_ids):
        yield f"lost or trained twice: {run_ids}"
    if (steps := sum(learned.updates for learned in trained.values())) != expected.steps[-1]:
        yield f"{steps} optimizer steps led to the result, expected {expected.steps[-1]}"
    names: dict[int, str] = {}
    for name in ledger.values("served"):
        version = Version.parse(name)
        if names.setdefault(version.number, name) != name:
            yield f"number {version.number} is {names[version.number]} and {name}"
    if leftovers := [str(path) for path in run.rglob(".*") if path.is_dir()]:
        yield f"left behind: {leftovers}"


@dataclass(frozen=True)
class Learned:
    """What one iteration was trained on, and the optimizer steps that it took."""

    run_ids: list[str]
    updates: int = 0


def lineage(ledger: Ledger) -> dict[int, Learned]:
    """The iterations that the result was made by: a resumed attempt discards those after its checkpoint."""
    found: dict[int, Learned] = {}
    for what, value in ledger.entries():
        if what == "resumed":
            found = {iteration: learned for iteration, learned in found.items() if iteration < value}
        elif what == "learning":
            latest = iteration_of(value[0])
            found[latest] = Learned(value)
        elif what == "updates":
            found[latest] = Learned(found[latest].run_ids, value)
    return found


def open_ledger(folder: Path, name: str) -> tuple[Path, Ledger]:
    """A new run folder, and the ledger beside it."""
    file = folder / f"{name}.ledger"
    return folder / name, Ledger(file, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND))


def main(scenario: str, folder: Path, first: int, stride: int, twice: bool) -> int:
    """Kill at write ``first``, ``first + stride`` and so on; with ``twice``, kill the attempt that resumes, too."""
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    trainer = Trainer(scenario, folder)
    run, ledger = open_ledger(folder, "undisturbed")
    assert trainer.attempt(run, 0, ledger) == 0, ledger.values("failed")
    expected = Outcome.of(run)
    assert len(expected.iterations) * UPDATES == expected.steps[-1] == sum(ledger.values("updates"))
    fatal = first
    while True:
        run, ledger = open_ledger(folder, f"killed-{fatal}")
        if trainer.attempt(run, fatal, ledger) == 0:
            break  # it ended before that many writes
        if twice:
            trainer.attempt(run, 1 + fatal * 7 % 40, ledger)
        if not ledger.values("complete"):
            trainer.attempt(run, 0, ledger)
        wrong = list(broken_promises(ledger, expected, run))
        print(json.dumps({"fatal": fatal, "before": ledger.values("killed before"), "wrong": wrong}), flush=True)
        if not wrong:
            shutil.rmtree(run)
        fatal += stride
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "twice"))
