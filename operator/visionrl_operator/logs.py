"""The operator's log: lines for people, or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from visionrl_core.clock import stamp
from visionrl_operator.options import Options

QUIET = ("kopf", "kubernetes.aio", "aiohttp.access")
"""Loggers whose warnings alone are of use."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": stamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(options: Options) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if options.log_format == "json" else text)
    logging.basicConfig(level=options.log_level, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
