"""Where the base model comes from: the hub, a path, a recipe, or the trainer after its warm start."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from visionrl.base_model import ModelError, locate_base
from visionrl.checks import exports_base
from visionrl.job import Job
from visionrl_inference.fetch import FetchError, KeyRefusedError, MissingError, fetch_folder, fetch_manifest, is_intact

logger = logging.getLogger(__name__)

BASE_PATH = "/base"
RETRY_SECONDS = 2.0
REPORT_SECONDS = 30.0
"""Time between two log lines while the trainer is waited for."""


def resolve_base_model(job: Job, cache: Path, trainer: Callable[[], httpx.Client]) -> Path:
    """The directory of the job's base model, made or downloaded into ``cache`` where it must be.

    Waits for the trainer where it trains the base first. Raises :class:`ModelError`; the hub's network errors
    (``OSError``) are worth another try.
    """
    if not exports_base(job.spec):
        return locate_base(job, cache)
    with trainer() as client:
        return fetch_base(client, cache)


def fetch_base(client: httpx.Client, cache: Path, sleep: Callable[[float], None] = time.sleep) -> Path:
    """The trainer's warm-started base at ``<cache>/base-<digest>``, waited for and verified.

    A directory that is there with the same digest is used again. An interrupted or damaged download is repeated; only
    a trainer that has no base to give (404) or refuses the key ends the wait (:class:`ModelError`).
    """
    cache.mkdir(parents=True, exist_ok=True)
    started, reported = time.monotonic(), -REPORT_SECONDS
    while True:
        try:
            return _fetch_base_once(client, cache)
        except MissingError:
            raise ModelError("the trainer has no base model: it runs this job without training.warmStart") from None
        except KeyRefusedError:
            raise ModelError("the trainer refuses the key: VISIONRL_KEY_FILE differs between the job's parts") from None
        except FetchError as error:
            waited = time.monotonic() - started
            if waited - reported >= REPORT_SECONDS:
                logger.info("waiting for the trainer's base model (%.0f s): %s", waited, error)
                reported = waited
            sleep(RETRY_SECONDS)


def _fetch_base_once(client: httpx.Client, cache: Path) -> Path:
    manifest = fetch_manifest(client, BASE_PATH)
    target = cache / f"base-{manifest.digest[:16]}"
    if is_intact(target):
        logger.info("base model %s is already here", target.name)
        return target
    shutil.rmtree(target, ignore_errors=True)
    started = time.monotonic()
    fetch_folder(client, BASE_PATH, manifest, target)
    logger.info("fetched %s: %.1f MB in %.1f s", target.name, manifest.size / 1e6, time.monotonic() - started)
    return target
