"""Keeps ``report.html`` up to date beside the training: its process imports and draws, the trainer writes it a line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from visionrl.status import TrainerReport
from visionrl_trainer.report.not_essential import not_essential
from visionrl_trainer.sync.service import StatusPublisher

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
STOP_SECONDS = 20.0
"""What the last page of a trainer that was stopped may take; a pod has 30 s to end."""
END_SECONDS = 120.0
"""The same where the run has ended: the page of the result is worth waiting for on a busy machine."""
COMMAND = (sys.executable, "-m", "visionrl_trainer.report")


@contextlib.asynccontextmanager
async def kept_up_to_date(publisher: StatusPublisher) -> AsyncIterator[None]:
    """The page is written again after each iteration and evaluation, and when the block ends. Nothing about it ends a
    run."""
    writer = _Writer()
    following = asyncio.create_task(_follow(writer, publisher))
    try:
        yield
    finally:
        following.cancel()
        with not_essential("the last report"):
            if publisher.report_file is not None:
                limit = END_SECONDS if publisher.report.phase in ("Complete", "Failed") else STOP_SECONDS
                await asyncio.wait_for(writer.close(publisher.report_file, publisher.report), limit)


async def _follow(writer: _Writer, publisher: StatusPublisher) -> None:
    shown: object = None
    while True:
        report, file = publisher.report, publisher.report_file
        if file is not None and (news := _news(report)) != shown:
            with not_essential("the report"):
                await writer.write(file, report)
            shown = news
        await asyncio.sleep(LOOK_SECONDS)


def _news(report: TrainerReport) -> object:
    """What a new page is worth."""
    return report.phase, report.progress.iteration, report.progress.total, report.progress.evaluation


class _Writer:
    """The process that writes the page; started at the first report, and again if it has ended."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None

    async def write(self, file: Path, report: TrainerReport) -> asyncio.subprocess.Process:
        """Ask for a page, without waiting for it."""
        if self.process is None or self.process.returncode is not None:
            self.process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(file.parent),
                stdin=asyncio.subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdin is not None
        self.process.stdin.write(report.model_dump_json(by_alias=True).encode() + b"\n")
        return self.process

    async def close(self, file: Path, report: TrainerReport) -> None:
        """Ask for the last page, and wait for it. The process ends by itself, with its input."""
        process = await self.write(file, report)
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
