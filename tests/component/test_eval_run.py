"""visionrl eval --run: a finished run's newest version, on its own base, behind its own server."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import psutil
import pytest

from tests.support.inference import publish_adapter, tiny_job
from visionrl.adapters import write_manifest
from visionrl.job import TinyModel
from visionrl_cli import main

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

JOB = tiny_job(
    {"maxNumSeqs": 8},
    rollout={
        "envConfig": {"imageSize": 144},
        "policyConfig": {"maxTokens": 16, "maxActions": 4, "historyTurns": 0, "systemPrompt": "Play Crafter."},
    },
    training={"iterations": 2, "warmStart": {"episodes": 1, "steps": 1}},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run of two iterations leaves: configuration, warm-started base, a checkpoint, a published version."""
    from visionrl.tiny.model import build_tiny

    root = tmp_path / "runs" / JOB.name
    model = build_tiny(TinyModel(seed=3), JOB.spec.rollout.env_config, tmp_path / "models")
    shutil.copytree(model, root / "base")
    (root / "base" / "manifest.json").unlink(missing_ok=True)
    write_manifest(root / "base")
    (root / "config.json").write_text(JOB.model_dump_json(by_alias=True))
    for number in (1, 2, 3):
        name = publish_adapter(model, root / "adapters", number, JOB.name)
        if number == 2:
            (root / "checkpoints" / name).mkdir(parents=True)
    return root


def test_the_newest_checkpoint_plays_by_its_name_on_the_runs_base(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = set(psutil.Process().children(recursive=True))
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    words = ["--run", run, "--seeds", "0-3", "--turns", "3", "--trace-db", tmp_path / "traces"]
    assert main(["eval", "--json", *map(str, words)]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert found["policy"].startswith("crafter-tiny-v000002-")
    assert len(found["settings"]["adapter_sha256"]) == 64
    assert [episode["turns"] for episode in found["episodes"]] == [3, 3, 3, 3]
    with sqlite3.connect(tmp_path / "traces" / "traces.db") as database:
        assert database.execute("SELECT DISTINCT model_name FROM events WHERE event_type = 'llm_call'").fetchall() == [
            (found["policy"],)
        ]
    assert len(list((tmp_path / "cache" / "visionrl").glob("base-*"))) == 1, "the base did not come from the run"
    assert set(psutil.Process().children(recursive=True)) == before
    assert {path: at for path, at in files.items() if path.stat().st_mtime_ns != at} == {}
