"""The folder that a supervised training writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visionrl.component import ConfigurationError
from visionrl.documents import DocumentError, parse_json, read_text
from visionrl.durable import write_atomically
from visionrl.job import Job
from visionrl.jobfile import JobFileError, read_resolved_job, with_warm_start
from visionrl_local.resume import check_same_job
from visionrl_trainer.state.runfolder import SftFolder

LOCK = ".lock"
SUMMARY = (
    "job", "base", "trains", "steps", "decisions", "held_out", "loss", "validation_loss", "model", "adapter", "rank"
)  # fmt: skip
"""Keys of summary.json."""


class Output:
    """Paths and small files of one supervised training."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.job_file = self.root / "sft.json"
        self.summary_file, self.curve_file = self.root / "summary.json", self.root / "loss.png"
        self.model, self.adapters = self.root / "model", self.root / "adapters"
        self.training = SftFolder(self.root)

    def prepare(self, job: Job, fresh: bool, note: Callable[[str], None]) -> None:
        """Make the folder this training's; `fresh` deletes what an earlier one left, and names it first.

        Raises :class:`ConfigurationError` for a folder of something else, :class:`visionrl_local.folder.LocalError`
        for one of a training with other settings.
        """
        others = [path for path in self.root.iterdir() if path.name != LOCK]
        if others and not self.job_file.exists():
            raise ConfigurationError(f"--output {self.root}: not empty, and not of visionrl train; choose another")
        if fresh:
            self._clear(note)
        accepted = self._accepted()
        if accepted is None:
            write_atomically(self.job_file, job.model_dump_json(by_alias=True, indent=2) + "\n")
            return
        # Data is identified by its content, not by its path: the checkpoint compares it.
        before, now = accepted.spec.training.warm_start, job.spec.training.warm_start
        assert before is not None
        assert now is not None
        check_same_job(accepted, with_warm_start(job, now.model_copy(update={"data": before.data})))

    def summary(self) -> dict[str, Any] | None:
        """Of a training that is complete."""
        if not self.summary_file.exists():
            return None
        try:
            found = parse_json(read_text(self.summary_file))
            return {name: found[name] for name in SUMMARY}
        except (DocumentError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self.summary_file} is damaged ({error}). The training is complete; --fresh repeats it"
            ) from None

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary_file, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def _accepted(self) -> Job | None:
        if not self.job_file.exists():
            return None
        try:
            return read_resolved_job(self.job_file)[0]
        except JobFileError:
            raise ConfigurationError(f"{self.job_file} is of another version; --fresh starts over") from None

    def _clear(self, note: Callable[[str], None]) -> None:
        """Delete what a training writes, nothing else."""
        training = self.training
        folders = (self.model, self.adapters, training.checkpoints)
        files = (training.metrics.path, self.curve_file, self.summary_file, self.job_file)
        found = [path for path in (*folders, *files) if path.exists()]
        if found:
            note(f"--fresh deletes {', '.join(path.name for path in found)} in {self.root}")
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
