"""Rollouts through a real vLLM against the same prompts sent to it directly: what playing adds.

    python -m tests.bench.rollouts [--model tiny] [--concurrency 4 16 32] [--turns 15] [--rounds 3] [--json FILE]

`rollouts` is what the trainer does in an iteration: its sampler and client, the task app with traces, the environment,
the checks of every answer. `direct` sends the prompts of such a batch again, as many episodes at a time, each prompt
after the answer to the one before: what the server can do where playing costs nothing. Every frame has another pixel
and every pass another name for the same weights, so that no cache of an earlier pass answers. The server has half of
this machine's cores for itself, as if it were another machine; all else has the others.

The tiny model's decision takes a tenth of a second or less, and shows what playing costs. One of a model of the 4B's
width takes seconds, in bfloat16 and with two layers: the environment's milliseconds are nothing to it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench.common import median, process_group_seconds, spread, write
from tests.support.inference import JOB_NAME, KEY, InferenceServer, chat_body, make_adapter, random_frame, tiny_job
from tests.support.taskapp import KEY as TASK_APP_KEY
from tests.support.taskapp import taskapp
from tests.support.trainer import StandInTrainer, named_by_content
from tests.support.true_width import build_true_width
from visionrl.job import EnvSettings, Job, TinyModel
from visionrl.tiny.model import build_tiny
from visionrl.tools import tool_schema
from visionrl_taskapp.envs.png import encode_png
from visionrl_taskapp.envs.registry import prepare
from visionrl_taskapp.policies.completions import completion_body
from visionrl_taskapp.policies.prompt import Frame, PastTurn, build_messages, system_prompt, with_pixels
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import ImageTokens
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.rollout.sampler import Batch, Sampler, policy_spec

GROUP = 4
"""Episodes from one start state."""
SECONDS_A_REQUEST = 600.0
SIDES = ("rollouts", "direct")
SHOWN = ("decisions_per_s", "server_cpu_ms")
"""Of a side, on the terminal."""


@dataclass(frozen=True)
class Shape:
    """A model, and what it is asked."""

    build: Callable[[Path], Path]
    """Make the model in a new folder."""
    model: dict[str, Any]
    """``spec.model``; an empty base is the folder."""
    image_size: int
    policy: dict[str, Any]
    """``spec.rollout.policyConfig``."""
    vllm: dict[str, Any]
    concurrency: tuple[int, ...]
    turns: int

    def job(self, folder: Path, concurrency: int, turns: int) -> Job:
        """A batch of as many episodes as are played at a time."""
        return tiny_job(
            self.vllm,
            model={**self.model, "base": self.model["base"] or str(folder), "lora": {"r": 8, "alpha": 16}},
            rollout={
                "maxConcurrent": concurrency,
                "envConfig": {"imageSize": self.image_size},
                "policyConfig": {**self.policy, "maxLlmCalls": turns},
            },
            training={"iterations": 1, "groupsPerIteration": max(1, concurrency // GROUP), "groupSize": GROUP},
        )


SHAPES = {
    "tiny": Shape(
        lambda folder: build_tiny(TinyModel(), EnvSettings(image_size=144), folder),
        {"base": "tiny", "dtype": "float32"},
        144,
        {"systemPrompt": "Play Crafter.", "maxTokens": 16},
        {},
        (4, 16, 32),
        15,
    ),
    # The built-in prompt and the tool: 1,240 tokens, 81 of them for a frame.
    "true-width": Shape(
        lambda folder: build_true_width(folder / "model"),
        {"base": "", "dtype": "bfloat16", "supportsVision": True},
        288,
        {"maxTokens": 36},
        {"maxModelLen": 2048},
        (4, 16),
        4,
    ),
}


class Pass:
    """One batch, played or sent."""

    def __init__(self, decisions: int, tokens: int, seconds: float, server_seconds: float) -> None:
        self.decisions_per_s, self.tokens_per_s = decisions / seconds, tokens / seconds
        self.server_ms = 1000 * server_seconds / decisions


class Bench:
    """A server, a task app and the versions that they know."""

    def __init__(
        self, server: InferenceServer, app: str, adapters: Path, expect: ImageTokens, job: Callable[[int], Job]
    ) -> None:
        self.server, self.app, self.adapters, self.expect, self.job = server, app, adapters, expect, job
        self.passes = 0

    def version(self) -> str:
        """The same weights under a new name."""
        self.passes += 1
        shutil.copytree(self.adapters / "weights", self.adapters / "draft")
        return named_by_content(self.adapters / "draft", JOB_NAME, self.passes)

    async def rollouts(self, concurrency: int) -> tuple[Pass, Batch]:
        spec, version = self.job(concurrency).spec, self.version()
        async with TaskApp(self.app, TASK_APP_KEY, concurrency) as client:
            sampler = Sampler(client, spec, JOB_NAME, self.server.url, self.expect)
            await self._load(version)
            before, began = process_group_seconds(self.server.pid), time.perf_counter()
            batch = await sampler.collect(self.passes, version)
            seconds = time.perf_counter() - began
        samples = [sample for episode in batch.episodes for sample in episode.samples]
        tokens = sum(len(sample.completion_ids) for sample in samples)
        return Pass(len(samples), tokens, seconds, process_group_seconds(self.server.pid) - before), batch

    async def direct(self, concurrency: int, batch: Batch) -> Pass:
        version = self.version()
        episodes = list(self._bodies(concurrency, batch, version))
        await self._load(version)
        before, began = process_group_seconds(self.server.pid), time.perf_counter()
        answers = await self._send(concurrency, episodes)
        seconds = time.perf_counter() - began
        sent = Counter(tuple(answer["prompt_token_ids"]) for answer in answers)
        played = Counter(sample.prompt_ids for episode in batch.episodes for sample in episode.samples)
        assert sent == played, "these are not the prompts that were played"
        tokens = sum(len(answer["choices"][0]["token_ids"]) for answer in answers)
        return Pass(len(answers), tokens, seconds, process_group_seconds(self.server.pid) - before)

    def _bodies(self, concurrency: int, batch: Batch, version: str) -> Iterator[list[dict[str, Any]]]:
        """The requests of each episode, as the task app sends them, its earlier answers included."""
        spec = self.job(concurrency).spec
        config = policy_spec(spec, version, self.server.url, self.expect.banned_ids).config
        game = prepare(spec.rollout.env_name, spec.rollout.env_config).description
        tools = [tool_schema(game.actions, config.max_actions, game.tool)]
        marked = {digest: encode_png(_marked(frame, self.passes)) for digest, frame in batch.frames.items()}
        for episode in batch.episodes:
            frames = [Frame(sample.images[-1], marked[sample.images[-1]]) for sample in episode.samples]
            past = [PastTurn(frame, None, answer.text) for frame, answer in zip(frames, episode.answers, strict=True)]
            prompt = system_prompt(config, game)
            yield [
                completion_body(
                    config,
                    with_pixels(build_messages(config, prompt, past[:turn], frame, None), [frame]),
                    tools,
                    logprobs=True,
                )
                for turn, frame in enumerate(frames)
            ]

    async def _load(self, version: str) -> None:
        """Let the server fetch the version."""
        await self._send(1, [[chat_body(version, random_frame(self.passes), max_tokens=1)]])

    async def _send(self, concurrency: int, episodes: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        answers, queue = list[dict[str, Any]](), iter(episodes)
        async with self.server.load_client(concurrency, SECONDS_A_REQUEST) as client:

            async def player() -> None:
                for bodies in queue:
                    for body in bodies:
                        async with client.post("/v1/chat/completions", json=body) as answer:
                            answer.raise_for_status()
                            answers.append(await answer.json())

            await asyncio.gather(*(player() for _ in range(concurrency)))
        return answers


def _marked(frame: np.ndarray, number: int) -> np.ndarray:
    marked = frame.copy()
    marked[0, 0] = number & 255, number >> 8, 255
    return marked


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started here runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(
    name: str,
    concurrencies: Sequence[int],
    turns: int,
    rounds: int,
    server_class: type[InferenceServer] = InferenceServer,
) -> list[dict[str, Any]]:
    """A row for each concurrency; both sides take turns."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as scratch, StandInTrainer(Path(scratch) / "trainer", KEY) as trainer:
        root, adapters = Path(scratch), trainer.root / "adapters"
        model = shape.build(root / "cache")
        make_adapter(model, adapters / "weights", seed=0)
        expect = Policy.load(model, shape.model["dtype"], torch.device("cpu")).image_tokens(shape.image_size)
        job = functools.partial(shape.job, model, turns=turns)
        server = server_class(job(max(concurrencies)), root, trainer.url)
        (root / "app").mkdir()
        cores = sorted(os.sched_getaffinity(0))
        half = max(1, len(cores) // 2)
        try:
            with on_cores(cores[:half]):
                server.start()
            variables = {"VISIONRL_INFERENCE_URL": server.url, "VISIONRL_TRACE_DIR": str(root / "app")}
            with on_cores(cores[-half:]), taskapp(root / "app", **variables) as app:
                bench = Bench(server, app.url, adapters, expect, job)
                return [
                    {"model": name, **asyncio.run(_compared(bench, concurrency, rounds))}
                    for concurrency in concurrencies
                ]
        finally:
            server.kill()


async def _compared(bench: Bench, concurrency: int, rounds: int) -> dict[str, Any]:
    sides: dict[str, list[Pass]] = {side: [] for side in SIDES}
    _, batch = await bench.rollouts(concurrency)
    await bench.direct(concurrency, batch)
    for round_ in range(rounds):
        for side in SIDES if round_ % 2 == 0 else reversed(SIDES):
            if side == "direct":
                sides[side].append(await bench.direct(concurrency, batch))
            else:
                found, batch = await bench.rollouts(concurrency)
                sides[side].append(found)
    pairs = list(zip(sides["rollouts"], sides["direct"], strict=True))
    ratios = [played.tokens_per_s / sent.tokens_per_s for played, sent in pairs]
    row: dict[str, Any] = {"in_flight": concurrency}
    for side, passes in sides.items():
        row[f"{side}_decisions_per_s"] = round(median([each.decisions_per_s for each in passes]), 1)
        row[f"{side}_tokens_per_s"] = round(median([each.tokens_per_s for each in passes]), 1)
        row[f"{side}_server_cpu_ms"] = round(median([each.server_ms for each in passes]), 1)
    return {**row, "ratio": round(median(ratios), 3), "spread": round(spread(ratios), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--concurrency", type=int, nargs="+", help="default: 4 16 32, at the 4B's width 4 16")
    parser.add_argument("--turns", type=int, help="default: 15, at the 4B's width 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in arguments.model
        for row in measure(
            name,
            arguments.concurrency or SHAPES[name].concurrency,
            arguments.turns or SHAPES[name].turns,
            arguments.rounds,
        )
    ]
    columns = ("model", "in_flight", *(f"{side}_{what}" for side in SIDES for what in SHOWN), "ratio", "spread")
    print(*(f"{column:>26}" for column in columns), sep="")
    for row in rows:
        print(*(f"{row[column]:>26}" for column in columns), sep="")
    write(arguments.json, "rollouts", {"rows": rows})


if __name__ == "__main__":
    main()
