"""The job as it was accepted, as text: the operator's status holds one copy and the ConfigMap another."""

from __future__ import annotations

import json
import logging

from visionrl.job import Job
from visionrl.versions import validate_known

logger = logging.getLogger(__name__)


def text_of(job: Job) -> str:
    return job.model_dump_json(by_alias=True)


def job_of(text: str) -> Job | None:
    """The job without what only a newer operator knew; None where the text holds none."""
    if not text:
        return None
    try:
        return validate_known(Job, json.loads(text))[0]
    except ValueError as error:
        logger.error("an accepted job cannot be read and is written anew: %s", error)
        return None
