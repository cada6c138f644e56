"""Trackers get a run's numbers, and none of them can end it."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest

from visionrl.job import Job
from visionrl_trainer.tracking import Trackers, trackers


def job(tracking: dict[str, Any] | None = None) -> Job:
    spec = {"model": {"base": "tiny"}, "training": {"iterations": 3}, "tracking": tracking or {}}
    return Job.model_validate(
        {"apiVersion": "visionrl.dev/v1alpha1", "kind": "VisionRLJob", "metadata": {"name": "demo"}, "spec": spec}
    )


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than a run waits."""
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 300.0)


def tracked(tracking: dict[str, Any], folder: Path) -> None:
    """A run of three iterations, and an evaluation that was played beside them."""
    found = Trackers(job(tracking), folder)
    for step in (1, 2, 3):
        record = {"reward": 0.5 * step, "phase_seconds": {"roll out": 2.0}, "version": "v", "entropy": math.nan}
        found.log("training", {**record, "advantages": {"low": 0, "high": 1, "counts": [1]}}, step)
    found.log("evaluation", {"mean": 4.0, "rates": {"open door": 0.25}}, 2)
    found.close()


def test_tensorboards_own_reader_reads_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked({}, tmp_path)
    tracked({}, tmp_path)  # a run that resumes
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "training/reward",
        "training/phase_seconds/roll_out",
        "evaluation/mean",
        "evaluation/rates/open_door",
    }
    assert {(event.step, event.value) for event in events.Scalars("training/reward")} == {(1, 0.5), (2, 1.0), (3, 1.5)}
    assert {(event.step, event.value) for event in events.Scalars("evaluation/mean")} == {(2, 4.0)}


def test_a_job_without_trackers_writes_nothing(tmp_path: Path) -> None:
    tracked({"tensorboard": False}, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Broken:
    def log(self, numbers: object, step: int) -> None:
        raise SystemExit("the server is gone")

    def close(self) -> None:
        raise AssertionError("it is left out")


@pytest.mark.parametrize("fails", ["opening", "logging"])
def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    def opener() -> Broken:
        if fails == "opening":
            raise SystemExit("no key")
        return Broken()

    others = trackers._openers(job(), tmp_path)
    monkeypatch.setattr(trackers, "_openers", lambda *arguments: [("Broken", opener), *others])
    tracked({}, tmp_path)
    assert caplog.text.count("Broken is not used any more: SystemExit") == 1
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_tracker_whose_package_is_missing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    tracked({"wandb": {"project": "demo"}}, tmp_path)
    assert "Weights & Biases is not used any more: ModuleNotFoundError" in caplog.text


# --- the others' own stores

HOW = (
    "is large and not in the lock. To run this: pip install trackio mlflow wandb in an environment of its own that has "
    "pip install -e '.[trainer,dev]', then python -m pytest tests/unit/trainer/test_tracking.py"
)


def test_mlflows_store_holds_the_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason=f"mlflow {HOW}")
    tracked({"tensorboard": False, "mlflow": {"experiment": "games"}}, tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("games")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "training/reward")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_wandb_keeps_the_run_for_later_in_offline_mode(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason=f"wandb {HOW}")
    tracked({"tensorboard": False, "wandb": {"project": "demo", "mode": "offline"}}, tmp_path)
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert {b"training/reward", b"evaluation/mean"} <= set(re.findall(rb"[a-z]+/[a-z]+", file.read_bytes()))


def test_trackios_local_store_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason=f"trackio {HOW}")
    tracked({"tensorboard": False, "trackio": {"project": "demo"}}, tmp_path)
    [store] = (tmp_path / "trackio").glob("**/demo.db")
    assert b"reward" in store.read_bytes()
