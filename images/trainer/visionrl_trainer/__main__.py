"""``python -m visionrl_trainer``: train the job of the environment variables."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

from visionrl import tracing
from visionrl.checks import exports_base
from visionrl.component import EXIT_CONFIGURATION, ComponentContext, ConfigurationError
from visionrl.errors import leaves
from visionrl.hang import watch
from visionrl.status import TrainerReport
from visionrl_trainer.report.last import leave_report
from visionrl_trainer.report.live import kept_up_to_date
from visionrl_trainer.sync.service import StatusPublisher, application, serve

EXIT_FAILED = 1
LINGER_SECONDS = 5.0
"""How long the report stays available after the end, so that the last poll sees the final state."""

logger = logging.getLogger("visionrl_trainer")

DESCRIPTION = """Train a job: sample rollouts from the task app, update the policy, publish its versions.

Configured by environment variables, which the operator and `visionrl run` set: VISIONRL_JOB, VISIONRL_KEY_FILE,
VISIONRL_HOST, VISIONRL_PORT, VISIONRL_TASKAPP_URL, VISIONRL_INFERENCE_URL, VISIONRL_RUN_DIR, VISIONRL_CACHE_DIR.
Exit codes: 0 complete, 1 failed and worth another attempt, 2 the configuration cannot work, 143 on SIGTERM.
"""


def main() -> int:
    """Run to the end and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="visionrl_trainer", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"], help="default: INFO")
    logging.basicConfig(level=parser.parse_args().log_level, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return asyncio.run(_main())
    except ConfigurationError as error:
        logger.error("%s", error)
        return EXIT_CONFIGURATION


async def _main() -> int:
    context = ComponentContext.from_environment()
    job = context.job()
    tracing.start(job, "trainer")
    publisher = StatusPublisher(TrainerReport(phase="Starting", message="loading"))
    publisher.exports_base = exports_base(job.spec)
    try:
        async with serve(application(publisher, context.key), context.host, context.port):
            return await _train(context, publisher)
    except OSError as error:
        logger.error("cannot listen on %s:%d: %s", context.host, context.port, error.strerror or error)
        return EXIT_FAILED


async def _train(context: ComponentContext, publisher: StatusPublisher) -> int:
    """Run until the end, an error or SIGTERM; the report shows which."""
    # torch and transformers: seconds; the service answers meanwhile
    from transformers.utils import logging as transformers_logging

    from visionrl_trainer.model.compute import computing
    from visionrl_trainer.train import run

    transformers_logging.disable_progress_bar()  # a log's last line is shown: it is to be news
    task = asyncio.ensure_future(run(context, context.job(), publisher))
    loop = asyncio.get_running_loop()
    watch(loop, computing)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    async with kept_up_to_date(publisher):
        try:
            await task
            code = 0
            leave_report(publisher.report)
        except asyncio.CancelledError:
            logger.info("stopped; the run resumes from its last checkpoint")
            return 128 + signal.SIGTERM
        except Exception as error:
            causes = list(leaves(error))
            for cause in causes:
                logger.error("%s", cause, exc_info=cause)
            publisher.update(phase="Failed", message=str(causes[0]) or type(causes[0]).__name__)
            code = EXIT_CONFIGURATION if any(isinstance(cause, ConfigurationError) for cause in causes) else EXIT_FAILED
    await asyncio.sleep(LINGER_SECONDS)
    return code


if __name__ == "__main__":
    sys.exit(main())
