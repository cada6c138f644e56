"""``visionrl run`` with the real components: from a file to a trained adapter, whatever is killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ruamel.yaml import YAML

from tests.support.inference import tiny_job
from visionrl.adapters import Version
from visionrl_local.folder import LocalFolder
from visionrl_local.fresh import made_by_run

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

ITERATIONS = 5
PATIENCE_SECONDS = 900.0
"""How long one condition may take before the test gives up; a model load on a busy machine is the longest."""


class Run:
    """A ``visionrl run`` in progress."""

    def __init__(self, folder: Path) -> None:
        job = tiny_job(
            {"maxNumSeqs": 16, "apiServerCount": 2},
            # The KL term gives every iteration something to learn, also one whose episodes all earned the same.
            algorithm={"loss": "grpo", "advantage": "turn", "scale": "batch", "gamma": 0.9, "klCoefficient": 0.01},
            rollout={
                "maxConcurrent": 16,
                "envConfig": {"imageSize": 144},
                "policyConfig": {
                    "maxTokens": 16,
                    "maxLlmCalls": 6,
                    "maxActions": 4,
                    "historyTurns": 0,
                    "systemPrompt": "Play Crafter.",
                },
            },
            training={
                "iterations": ITERATIONS,
                "groupsPerIteration": 2,
                "groupSize": 4,
                "learningRate": 2e-4,
                "warmStart": {"episodes": 40, "steps": 250, "turns": 20, "optimizer": "muon"},
            },
            evaluation={"episodes": 8},
            failurePolicy={"backoffSeconds": 1},
        )
        self.file, self.folder = folder / "job.yaml", folder / "runs" / job.name
        with self.file.open("w") as stream:
            YAML().dump(json.loads(job.model_dump_json(by_alias=True, exclude_unset=True)), stream)
        self.output = folder / "output.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).with_name("visionrl")
        command: list[str | Path] = [program, "run", self.file, "--runs", self.folder.parent]
        with self.output.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def again(self) -> None:
        self.process = self._start()

    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def iteration(self) -> int:
        return self.status().get("progress", {}).get("iteration", 0)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}\n{self.tail()}"
            time.sleep(0.1)

    def component(self, module: str) -> psutil.Process:
        """The process of a component, by a word of its command line."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return next(
            p
            for p in family
            if any(module in word for word in p.cmdline()[1:3]) and "visionrl_trainer.report" not in p.cmdline()
        )

    def tail(self) -> str:
        logs = sorted((self.folder / "logs").glob("*.log"))
        ends = [f"== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-30:]) for log in logs]
        # The run's own words come last: a long report of a failure is cut at its beginning.
        return "\n".join([*ends, "== visionrl run", self.output.read_text()])

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run during which the server, the trainer and the whole command were ended once each."""
    run = Run(tmp_path_factory.mktemp("run"))
    try:
        run.wait_for("the first iteration", lambda: run.iteration >= 1)
        run.component("vllm").kill()
        before = run.iteration
        run.wait_for("an iteration after the server was killed", lambda: run.iteration > before)

        checkpoint = newest_checkpoint(run)
        run.component("visionrl_trainer").kill()
        run.wait_for("the next attempt", lambda: run.status()["attempt"] >= 1)
        run.wait_for("an iteration after the trainer was killed", lambda: run.iteration > checkpoint)

        run.process.send_signal(signal.SIGINT)
        family = psutil.Process(run.process.pid).children(recursive=True)
        assert run.process.wait(120) == 130, run.tail()
        assert not psutil.wait_procs(family, timeout=10)[1], "Ctrl-C left processes"
        run.again()
        assert run.process.wait(PATIENCE_SECONDS) == 0, run.tail()
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(120)


def newest_checkpoint(run: Run) -> int:
    """Its iteration, which is its version's number for as long as nothing was repeated."""
    names = (path.name for path in (run.folder / "checkpoints").iterdir())
    return max(Version.parse(name).number for name in names if not name.startswith("."))


def test_the_run_completes_and_says_what_it_did(finished: Run) -> None:
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["iterations"] == ITERATIONS
    assert summary["episodes"] == ITERATIONS * 8
    assert summary["tokens"] > 0
    assert summary["adapter"].startswith("crafter-tiny-v")
    assert {"before", "after", "gain"} <= set(summary["evaluation"])
    assert len(summary["evaluation"]["before"]["returns"]) == 8
    assert {"rollout", "update", "evaluation", "sync"} <= set(summary["seconds"])
    report = (finished.folder / "report.html").read_text()
    assert f"complete after iteration {ITERATIONS} of {ITERATIONS}" in report
    assert "A held-out seed, before and after" in report
    assert "Episodes that were trained on" in report


def test_serving_and_training_agree_after_every_version(finished: Run) -> None:
    assert json.loads((finished.folder / "summary.json").read_text())["mismatch"]["max_abs"] <= 1e-4
    for record in finished.metrics():
        assert record["mismatch_max"] <= 1e-4


def test_no_iteration_is_lost_or_trained_twice(finished: Run) -> None:
    metrics = finished.metrics()
    assert [record["iteration"] for record in metrics] == list(range(1, ITERATIONS + 1))
    versions = [record["version"] for record in metrics]
    assert versions == sorted(set(versions))


def test_the_status_has_the_attempts_and_why_they_ended(finished: Run) -> None:
    status = finished.status()
    assert status["phase"] == "Complete"
    causes = [attempt["cause"] for attempt in status["attempts"] if attempt["cause"]]
    assert any("trainer" in cause and "137" in cause for cause in causes)
    assert status["policy"]["serving"] == status["policy"]["trained"]


def test_the_optimizers_state_survives_the_restarts(finished: Run) -> None:
    version = json.loads((finished.folder / "summary.json").read_text())["adapter"]
    checkpoint = finished.folder / "checkpoints" / version
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    steps = {int(state["step"]) for state in saved["optimizer"]["state"].values()}
    updates = sum(record["updates"] for record in finished.metrics())  # none where all groups had equal returns
    assert 0 < updates <= ITERATIONS
    assert steps == {updates}, "counted through every restart"


def test_fresh_knows_every_file_of_a_run(finished: Run) -> None:
    made, kept = made_by_run(LocalFolder(finished.folder))
    assert {"checkpoints", "adapters", "logs", "job", "status.json"} <= {path.name for path in made}
    assert kept == []


def test_a_finished_run_is_not_run_again(finished: Run) -> None:
    finished.again()
    assert finished.process.wait(120) == 0
    assert "complete already" in finished.output.read_text()
    assert [record["iteration"] for record in finished.metrics()] == list(range(1, ITERATIONS + 1))


def test_the_status_shows_how_healthy_the_last_iteration_was(finished: Run) -> None:
    progress, last = finished.status()["progress"], finished.metrics()[-1]
    shown = {
        "mismatchKL": "mismatch_kl",
        "entropy": "entropy",
        "clipFraction": "clip_fraction",
        "ratioMean": "ratio_mean",
        "ratioMax": "ratio_max",
        "advantageStd": "advantage_std",
        "zeroVarianceGroups": "zero_variance_groups",
        "invalidRate": "invalid_rate",
        "gradNorm": "grad_norm",
        "staleness": "staleness",
    }
    assert {name: progress.get(name) for name in shown} == pytest.approx(
        {name: last[field] for name, field in shown.items()}
    )
