"""The run folder: whose it is, and which damage to it costs nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import job
from visionrl.component import ConfigurationError
from visionrl_trainer.report import films
from visionrl_trainer.state import runfolder
from visionrl_trainer.state.metrics import MetricsFile
from visionrl_trainer.state.runfolder import RunFolder, RunFolderInUse

HOLDS_THE_FOLDER = """
import asyncio, sys
from pathlib import Path
from visionrl_trainer.state.runfolder import RunFolder

async def main():
    await RunFolder(Path(sys.argv[1])).own()
    print("owned", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


async def test_a_second_trainer_waits_and_then_says_whose_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfolder, "LOCK_PATIENCE_SECONDS", 0.1)
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDS_THE_FOLDER, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert await other.stdout.readline() == b"owned\n"
        with pytest.raises(RunFolderInUse, match=rf"in use by another trainer \(process {other.pid} on "):
            await RunFolder(tmp_path).own()
    finally:
        other.kill()
        await other.wait()
    await RunFolder(tmp_path).own()


CHANGES: dict[str, Any] = {
    "training.seed": 7,
    "training.learningRate": 1e-3,
    "training.maxStaleness": 1,
    "algorithm.loss": "dapo",
    "model.dtype": "float32",
    "model.lora": {"r": 4},
    "rollout.policyConfig": {"temperature": 0.7},
    "rollout.envConfig": {"difficulty": "hard"},
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_run_is_not_resumed_by_a_job_that_learns_something_else(tmp_path: Path, path: str) -> None:
    folder = RunFolder(tmp_path)
    folder.accept(job())
    folder.accept(job({path: CHANGES[path]}))  # nothing was learned yet
    folder.accept(job())
    (folder.checkpoints / "crafter-v000000-0123456789ab").mkdir(parents=True)
    folder.accept(job())
    with pytest.raises(ConfigurationError, match=rf"another spec\.{path}.*start over"):
        folder.accept(job({path: CHANGES[path]}))


def test_another_jobs_run_is_not_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.accept(job())
    (folder.warm_start.checkpoints / "step-00000001").mkdir(parents=True)
    other = job().model_copy(update={"metadata": job().metadata.model_copy(update={"name": "other"})})
    with pytest.raises(ConfigurationError, match=r"another metadata\.name"):
        folder.accept(other)


def test_what_leaves_the_learning_as_it_is_may_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.accept(job())
    folder.base.mkdir()
    folder.accept(
        job(
            {
                "training.iterations": 99,
                "training.checkpointEvery": 3,
                "training.guards": {"patience": 9},
                "rollout.maxConcurrent": 2,
                "evaluation.episodes": 2,
                "inference.vllm": {"maxNumSeqs": 7},
                "failurePolicy": {"maxRestarts": 1},
            }
        )
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"kind": 3}'])
def test_a_damaged_config_is_written_anew(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    folder.base.mkdir()
    folder.config_file.write_bytes(content)
    folder.accept(job())
    assert "config.json is damaged" in caplog.text
    assert json.loads(folder.config_file.read_bytes())["kind"] == "VisionRLJob"


# --- numbers over time


def test_records_of_lost_iterations_are_dropped_and_cut_off_lines_ignored(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", "iteration")
    for iteration in (1, 2, 3):
        file.append({"iteration": iteration})
    with file.path.open("a") as stream:
        stream.write('{"iteration": 4, "rew')
    assert [record["iteration"] for record in file.records()] == [1, 2, 3]
    file.rewind(2)
    file.append({"iteration": 3, "again": True})
    assert file.records() == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "again": True}]


@given(st.binary(max_size=40), st.sampled_from([b"\n", b""]))
def test_no_damage_to_a_file_of_records_ends_a_run(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, end: bytes
) -> None:
    file = MetricsFile(tmp_path_factory.mktemp("records") / "metrics.jsonl", "iteration", ["reward"])
    file.path.write_bytes(b'{"iteration": 1, "reward": 2.0}\n' + damage + end)
    file.rewind(1)
    file.append({"iteration": 2, "reward": 3.0})
    records = file.records()
    assert records[-1] == {"iteration": 2, "reward": 3.0}
    assert all(type(record["iteration"]) is int and "reward" in record for record in records)


@pytest.mark.parametrize(
    "line",
    [b'{"iteration": null, "reward": 1}', b'{"iteration": "2", "reward": 1}', b"3", b'{"iteration": 2}', b"[" * 9999],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", "iteration", ["reward"])
    file.path.write_bytes(line + b'\n{"iteration": 3, "reward": 1}\n')
    assert [record["iteration"] for record in file.records()] == [3]
    assert "metrics.jsonl:1 is damaged and skipped" in caplog.text


def test_records_that_cannot_be_written_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    file = MetricsFile(tmp_path / "metrics.jsonl", "iteration")
    file.rewind(0)
    file.append({"iteration": 1})
    assert file.records() == []
    assert "iteration 1 is not recorded" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_damaged_film_is_left_out(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    films.save(films.Film(iteration=2, policy="p", seed=0, score=0, turns=[]), tmp_path)
    (tmp_path / "000001.json").write_bytes(content)
    assert [found.iteration for found in films.first_and_last(tmp_path)] == [2]
    assert "000001.json is damaged and left out" in caplog.text
