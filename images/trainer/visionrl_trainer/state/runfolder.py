"""The run folder: its files, its lock, and the job that it belongs to."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from visionrl.component import ConfigurationError
from visionrl.durable import write_atomically
from visionrl.job import Job
from visionrl.versions import validate_known
from visionrl_trainer.state.learned import differences
from visionrl_trainer.state.metrics import MetricsFile

logger = logging.getLogger(__name__)

METRICS, SUMMARY, REPORT = "metrics.jsonl", "summary.json", "report.html"
LOCK_PATIENCE_SECONDS = 60.0
"""How long a trainer waits for its predecessor to end, which may still write a checkpoint."""


class RunFolderInUse(RuntimeError):
    """Another trainer uses the run folder."""


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.adapters, self.checkpoints, self.base = root / "adapters", root / "checkpoints", root / "base"
        self.metrics = MetricsFile(root / METRICS, "iteration", ("reward", "invalid_rate", "entropy"))
        self.evaluations = MetricsFile(
            root / "evaluations.jsonl", "iteration", ("mean", "low", "high", "episodes", "rates", "returns", "seeds")
        )
        """Results on the held-out seeds."""
        self.warm_start = SftFolder(root / "warm-start")
        self.config_file, self.lock_file = root / "config.json", root / "trainer.lock"
        self.summary_file, self.report_file = root / SUMMARY, root / REPORT
        self.facts_file, self.films = root / "facts.json", root / "films"
        """What the last attempt ran on, and episodes to look at."""

    async def own(self) -> None:
        """Lock the folder until this process has ended, however it ends: after SIGTERM, a thread may still write.

        Waits for another trainer to end. Raises :class:`RunFolderInUse` if it does not.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)  # never closed
        await self._lock(descriptor, time.monotonic() + LOCK_PATIENCE_SECONDS)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    async def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self.lock_file.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
                if not time.monotonic() < deadline:
                    raise RunFolderInUse(
                        f"{self.root} is in use by another trainer ({holder}); give each job a run folder of its own, "
                        "or end that trainer"
                    ) from None
                logger.info("waiting for another trainer to leave %s (%s)", self.root, holder)
                await asyncio.sleep(1.0)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                logger.warning("%s has no file locks; make sure that no other trainer uses it", self.root)
                return

    def accept(self, job: Job) -> None:
        """Write the job to ``config.json``.

        Raises :class:`ConfigurationError` if the folder has progress of a job that learns something else.
        """
        before = self._accepted()
        if before is not None and self.has_progress and (changed := differences(before, job)):
            raise ConfigurationError(
                f"{self.root} holds a run with another {', '.join(changed)}, which cannot change once something was "
                "learned; set it back, or start over with an empty run folder (visionrl run --fresh)"
            )
        write_atomically(self.config_file, job.model_dump_json(by_alias=True, indent=2))

    @property
    def has_progress(self) -> bool:
        """Whether there is anything to resume from."""
        return self.base.exists() or self.has_checkpoints or _has_entries(self.warm_start.checkpoints)

    @property
    def has_checkpoints(self) -> bool:
        return _has_entries(self.checkpoints)

    def _accepted(self) -> Job | None:
        """The job of ``config.json``; ``None`` if the file is missing or damaged."""
        try:
            job, _ = validate_known(Job, json.loads(self.config_file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            logger.warning("%s is damaged and is written again: %s", self.config_file, error)
            return None
        return job

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary_file, json.dumps(summary, indent=2) + "\n")


class SftFolder:
    """The files of supervised training."""

    def __init__(self, root: Path) -> None:
        self.checkpoints = root / "checkpoints"
        self.metrics = MetricsFile(root / METRICS, "step")

    def forget_checkpoints(self) -> None:
        """Delete the checkpoints, once the result of the training is saved elsewhere."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
