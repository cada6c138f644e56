"""Where the base model comes from: the hub, a path, a recipe, or the trainer after its warm start."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from visionrl.base_model import ModelError, locate_base
from visionrl.checks import exports_base
from visionrl.folders import is_whole
from visionrl.job import Job
from visionrl_inference.fetch import FetchError, KeyRefusedError, MissingError, fetch_folder, fetch_manifest

logger = logging.getLogger(__name__)

BASE_PATH = "/base"
MAX_BASE_BYTES = 1 << 40
RETRY_SECONDS = 2.0
REFUSALS = 60
"""So many in a row are believed: two minutes, longer than a trainer that is being replaced takes to end."""
REPORT_SECONDS = 30.0
"""Time between two log lines while the trainer is waited for."""


def resolve_base_model(job: Job, cache: Path, trainer: Callable[[], aiohttp.ClientSession]) -> Path:
    """The directory of the job's base model, made or downloaded into ``cache`` where it must be.

    Waits for the trainer where it trains the base first. Raises :class:`ModelError`; the hub's network errors
    (``OSError``) are worth another try.
    """
    if not exports_base(job.spec):
        return locate_base(job, cache)
    cache.mkdir(parents=True, exist_ok=True)
    return asyncio.run(fetch_base(trainer, cache))


async def fetch_base(
    trainer: Callable[[], aiohttp.ClientSession], cache: Path, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Path:
    """The trainer's warm-started base at ``<cache>/base-<digest>``, waited for and verified; ``cache`` exists.

    A directory that is there and holds exactly these files is used again. An interrupted or damaged download is
    repeated. A trainer that keeps saying that it has no base to give (404) or that it refuses the key ends the wait
    (:class:`ModelError`); one that says so for a moment may be a former one, with a former key.
    """
    started, reported, refusals = time.monotonic(), -REPORT_SECONDS, 0
    async with trainer() as client:
        while True:
            try:
                return await _fetch_base_once(client, cache)
            except FetchError as error:
                refusals = refusals + 1 if isinstance(error, MissingError | KeyRefusedError) else 0
                if refusals > REFUSALS:
                    raise _refused(error) from None
                waited = time.monotonic() - started
                if waited - reported >= REPORT_SECONDS:
                    logger.info("waiting for the trainer's base model (%.0f s): %s", waited, error)
                    reported = waited
                await sleep(RETRY_SECONDS)


def _refused(error: FetchError) -> ModelError:
    if isinstance(error, KeyRefusedError):
        return ModelError("the trainer refuses the key: VISIONRL_KEY_FILE differs between the job's components")
    return ModelError("the trainer has no base model: it runs this job without training.warmStart")


async def _fetch_base_once(client: aiohttp.ClientSession, cache: Path) -> Path:
    manifest = await fetch_manifest(client, BASE_PATH)
    if manifest.size > MAX_BASE_BYTES:
        raise FetchError(f"{BASE_PATH} has {manifest.size} bytes, more than {MAX_BASE_BYTES}")
    target = cache / f"base-{manifest.digest[:16]}"
    if is_whole(target, manifest):
        logger.info("base model %s is already here", target.name)
        return target
    started = time.monotonic()
    await fetch_folder(client, BASE_PATH, manifest, target)
    logger.info("fetched %s: %.1f MB in %.1f s", target.name, manifest.size / 1e6, time.monotonic() - started)
    return target
