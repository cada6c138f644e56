"""The run folder: what a run leaves behind, readable while it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visionrl.durable import write_atomically
from visionrl_trainer.state.metrics import MetricsFile

METRICS, SUMMARY, CURVE, REPORT = "metrics.jsonl", "summary.json", "reward.png", "report.html"


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.adapters, self.checkpoints, self.base = root / "adapters", root / "checkpoints", root / "base"
        self.metrics = MetricsFile(root / METRICS, "iteration")
        self.warm_start = SftFolder(root / "warm-start")
        self.summary_file, self.curve_file, self.report_file = root / SUMMARY, root / CURVE, root / REPORT
        self.replays = root / "films"

    def write_config(self, job_json: str) -> None:
        """Keep the job that runs here, as ``config.json``."""
        write_atomically(self.root / "config.json", job_json)

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary_file, json.dumps(summary, indent=2) + "\n")


class SftFolder:
    """What supervised training writes while it runs."""

    def __init__(self, root: Path) -> None:
        self.checkpoint = root / "checkpoint.pt"
        self.metrics = MetricsFile(root / METRICS, "step")
