"""A whole run of ``visionrl run`` with the real components, and what its folder tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from visionrl.job import Job

VISIONRL_RUN = (str(Path(sys.executable).with_name("visionrl")), "run")
REWARDED_RUN = (sys.executable, "-m", "tests.support.rewarded_run")
PATIENCE_SECONDS = 3600.0


def run_whole(job: Job, folder: Path, program: tuple[str, ...] = VISIONRL_RUN) -> Path:
    """Run the job in ``folder`` to its end, which must be a good one; the run folder."""
    file, runs = folder / "job.yaml", folder / "runs"
    file.write_text(job.model_dump_json(by_alias=True, exclude_unset=True))
    command = [*program, str(file), "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    logs = "\n".join(log.read_text(errors="replace")[-3000:] for log in runs.glob("*/logs/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return runs / job.name


def records(run: Path) -> list[dict[str, Any]]:
    """One for each iteration."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
