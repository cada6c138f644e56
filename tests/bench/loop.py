"""The training loop in step and ahead: what maxStaleness 1 gains where playing and learning take equally long, and what
an evaluation costs that is played beside.

    python -m tests.bench.loop [--seconds 2] [--iterations 6] [--rounds 3] [--json FILE]

The loop is the trainer's own: batches, intake, metrics, versions, checkpoints, the run folder. Two things are stand-ins
that wait and compute nothing, as if on other machines: a rollout takes ``--seconds``, and so does an update; the server
serves at once. In step an iteration takes both, ahead the longer one; what is missing to 2 is the loop's own time,
which grows with what else the machine does: its processor time is told beside it. An evaluation, of as many episodes as
a batch, takes as long as a rollout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.bench.common import median, spread, write
from tests.support.jobs import job
from tests.unit.trainer.test_intake import decision, png, response
from visionrl.component import ComponentContext
from visionrl.frames import frame_hash
from visionrl.job import TinyModel
from visionrl.rollout import RewardSplit, RolloutRequest, RolloutResponse
from visionrl.status import TrainerReport
from visionrl.tiny.model import build_tiny
from visionrl_trainer import train
from visionrl_trainer.algo.stats import UpdateStats
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Group
from visionrl_trainer.sync.service import StatusPublisher

GROUPS, SIZE, TURNS = 4, 8, 10
IMAGE = 144
STATS = UpdateStats(
    loss=None,
    grad_norm=0.0,
    entropy=None,
    clip_fraction=None,
    ratio_mean=None,
    ratio_max=None,
    advantage_std=0.0,
    mismatch_max=None,
    mismatch_mean=None,
    mismatch_kl=None,
    masked_rate=0.0,
    tokens=0,
    updates=0,
    skipped_updates=0,
)
"""Of an update that measures nothing."""


@dataclass(frozen=True)
class Way:
    """How a run goes."""

    what: str
    staleness: int
    evaluates_every: int
    """Iterations; 0 for never."""
    phases: int
    """Of those that take ``--seconds``, as many come after each other in an iteration."""


WAYS = (
    Way("in step", 0, 0, 2),
    Way("ahead", 1, 0, 1),
    Way("in step, evaluated every second iteration", 0, 2, 2),
    Way("ahead, evaluated every second iteration", 1, 2, 1),
)


def settings(way: Way, iterations: int) -> dict[str, Any]:
    return {
        "tracking": {"tensorboard": False},
        "model.dtype": "float32",
        "rollout.envConfig": {"imageSize": IMAGE},
        "rollout.maxConcurrent": GROUPS * SIZE,
        "rollout.policyConfig": {"maxLlmCalls": TURNS},
        "inference": {"vllm": {"maxModelLen": 512}},
        "training.iterations": iterations,
        "training.groupsPerIteration": GROUPS,
        "training.groupSize": SIZE,
        "training.maxStaleness": way.staleness,
        "evaluation.episodes": GROUPS * SIZE if way.evaluates_every else 0,
        "evaluation.everyIterations": way.evaluates_every,
    }


@contextlib.contextmanager
def other_machines(policy: Policy, seconds: float) -> Iterator[list[tuple[float, float]]]:
    """Waiting in place of the environment, the server and the update; at the end of each update, the time and this
    process's processor time are noted."""
    ends: list[tuple[float, float]] = []
    expect = policy.image_tokens(IMAGE)
    prompt = [1, *[expect.placeholder_id] * expect.per_image, 2]
    random = np.random.default_rng(0)
    frames = [random.integers(256, size=(IMAGE, IMAGE, 3), dtype=np.uint8) for _ in range(GROUPS * SIZE * TURNS)]
    images = [(frame_hash(frame), png(frame)) for frame in frames]

    async def rollout(taskapp: Any, request: RolloutRequest, patience: float) -> RolloutResponse:
        seen = [images[n] for n in random.integers(len(images), size=TURNS)]
        played = [
            decision(
                index=index,
                images=[digest],
                model=request.policy.config.model,
                prompt_token_ids=prompt,
                token_ids=[10, 11, 12],
                logprobs=[-0.5] * 3,
                reward=RewardSplit(event=float(random.normal())),
            )
            for index, (digest, _) in enumerate(seen)
        ]
        answer = response(played, dict(seen)).model_copy(update={"run_id": request.run_id})
        await asyncio.sleep(seconds)
        return answer

    def update(policy: Policy, *rest: Any) -> UpdateStats:
        time.sleep(seconds)
        with torch.no_grad():
            for _, parameter in policy.trainable():
                parameter.add_(1e-3)  # each version is another one
        ends.append((time.monotonic(), time.process_time()))
        return STATS

    def prepare(policy: Policy, group: Group, *rest: Any) -> tuple[Group, dict[str, Any]]:
        return group, {}

    async def push(sync: Any, policy: Policy, version: Any) -> None:
        pass

    replacements = {
        "train.Policy.load": lambda *arguments, **named: policy,
        "preparation.locate_base": lambda *arguments: Path("base"),
        "train.TaskApp.rollout": rollout,
        "train.WeightSync.push": push,
        "train.update": update,
        "train.prepare": prepare,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in replacements.items():
            stack.enter_context(mock.patch(f"visionrl_trainer.{name}", replacement))
        yield ends


def iterations_of(way: Way, iterations: int, seconds: float) -> list[tuple[float, float]]:
    """From the end of each update of a run to the end of the next: seconds, and processor seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        played = job(settings(way, iterations))
        (root / "job.json").write_text(played.model_dump_json(by_alias=True))
        (root / "key").write_text("bench-key")
        variables = {
            "VISIONRL_JOB": str(root / "job.json"),
            "VISIONRL_RUN_DIR": str(root / "run"),
            "VISIONRL_CACHE_DIR": str(root / "cache"),
            "VISIONRL_KEY_FILE": str(root / "key"),
            "VISIONRL_TASKAPP_URL": "http://127.0.0.1:9",
            "VISIONRL_INFERENCE_URL": "http://127.0.0.1:9",
        }
        policy = Policy.load(
            build_tiny(TinyModel(), played.spec.rollout.env_config, root / "model"), "float32", torch.device("cpu")
        )
        with other_machines(policy, seconds) as ends:
            publisher = StatusPublisher(TrainerReport(phase="Starting"))
            asyncio.run(train.run(ComponentContext(variables), played, publisher))
        return [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(ends)]


def measure(seconds: float, iterations: int, rounds: int) -> dict[str, Any]:
    """All ways, taking turns; means, because an evaluation is not in every iteration."""
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    cpu: dict[Way, list[float]] = {way: [] for way in WAYS}
    for round_ in range(rounds):
        for way in WAYS if round_ % 2 == 0 else reversed(WAYS):
            each = iterations_of(way, iterations, seconds)
            found[way].append(float(np.mean([took for took, _ in each])))
            cpu[way].append(float(np.mean([used for _, used in each])))
    rows = [
        {
            "what": way.what,
            "maxStaleness": way.staleness,
            "seconds_an_iteration": round(median(found[way]), 3),
            "spread": round(spread(found[way]), 3),
            "loops_own_seconds": round(median(found[way]) - way.phases * seconds, 3),
            "loops_own_cpu_s": round(median(cpu[way]), 3),
        }
        for way in WAYS
    ]
    ratios = [step / ahead for step, ahead in zip(found[WAYS[0]], found[WAYS[1]], strict=True)]
    return {"phase_seconds": seconds, "rows": rows, "ratio": round(median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a rollout, and of an update")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.seconds, arguments.iterations, arguments.rounds)
    for row in result["rows"]:
        print(
            f"{row['what']:44}{row['seconds_an_iteration']:8.3f} s an iteration ± {row['spread']:.0%}, of them the "
            f"loop's own {row['loops_own_seconds']:.3f} ({row['loops_own_cpu_s']:.3f} CPU s)"
        )
    print(f"ahead is {result['ratio']}× as fast; {GROUPS * SIZE} episodes of {TURNS} turns an iteration")
    write(arguments.json, "loop", result)


if __name__ == "__main__":
    main()
