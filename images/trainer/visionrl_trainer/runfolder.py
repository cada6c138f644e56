"""The run folder: what a run leaves behind, readable while it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionrl.durable import write_atomically

METRICS, SUMMARY, CURVE, REPORT = "metrics.jsonl", "summary.json", "reward.png", "report.html"


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.adapters, self.checkpoints, self.base = root / "adapters", root / "checkpoints", root / "base"
        self.warm_start = root / "warm-start" / "checkpoint.pt"
        self.summary_file, self.curve_file, self.report_file = root / SUMMARY, root / CURVE, root / REPORT
        self.films = root / "films"

    def write_config(self, job_json: str) -> None:
        """Keep the job that runs here, as ``config.json``."""
        write_atomically(self.root / "config.json", job_json)

    def metrics(self) -> list[dict[str, Any]]:
        """All complete lines of ``metrics.jsonl``; a line that a crash cut off is left out."""
        return list(self._lines())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line, on disk when this returns."""
        with (self.root / METRICS).open("a") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rewind_metrics(self, iteration: int) -> None:
        """Drop lines of iterations beyond this one: what a killed attempt did after its last checkpoint is done
        again."""
        kept = [record for record in self._lines() if record["iteration"] <= iteration]
        write_atomically(self.root / METRICS, "".join(json.dumps(record) + "\n" for record in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary_file, json.dumps(summary, indent=2) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        path = self.root / METRICS
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:
                continue
