"""The last report, left where it outlives the trainer: Kubernetes keeps a container's termination log."""

from __future__ import annotations

import contextlib
from pathlib import Path

from visionrl.status import TrainerReport

TERMINATION_LOG = Path("/dev/termination-log")


def leave_report(report: TrainerReport, file: Path = TERMINATION_LOG) -> None:
    """Write the report of a completed run, so that the job's status gets the last iteration and evaluation even where
    nobody asked for them in time. Does nothing outside a pod. It is not essential: a failure ends nothing."""
    if file.is_file():
        with contextlib.suppress(OSError):
            file.write_text(report.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
