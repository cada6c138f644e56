"""``python -m visionrl_trainer.report FOLDER``: keep ``report.html`` up to date, in a process of its own.

Reads the trainer's reports from standard input, one JSON object a line, and writes the page for the newest. At the end
of the input the trainer has ended, whatever its last words were: the page says so.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from pathlib import Path

from visionrl.status import TrainerReport
from visionrl_trainer.report.not_essential import not_essential
from visionrl_trainer.report.page import write_page
from visionrl_trainer.state.runfolder import RunFolder


def main(arguments: list[str]) -> int:
    """Write pages until the input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s report: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the trainer, whose end is this process's end
    os.nice(10)
    folder, report = RunFolder(Path(arguments[0])), TrainerReport(phase="Starting")
    os.set_blocking(sys.stdin.fileno(), False)
    rest, ended = b"", False
    while not ended:
        select.select([sys.stdin], [], [])
        while (data := _read()) is not None:
            ended = ended or not data
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                report = TrainerReport.model_validate_json(lines[-1])
            if ended:
                break
        with not_essential(str(folder.report_file)):
            write_page(folder, report, ended)
    return 0


def _read() -> bytes | None:
    """What there is; None where there is nothing now, empty at the end of the input."""
    try:
        return os.read(sys.stdin.fileno(), 1 << 16)
    except BlockingIOError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
