"""From an adapter's name to its folder: the trainer's files, fetched once and compared with the name at every use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from visionrl.adapters import ADAPTER_FILES, Version, probe_job
from visionrl_inference.adapters.store import Store
from visionrl_inference.fetch import FetchError, KeyRefusedError, MissingError, fetch_folder, fetch_manifest

logger = logging.getLogger("vllm.visionrl")  # below vLLM's logger, so that its handler and level apply

MAX_ADAPTER_BYTES = 8 << 30
RETRY_DELAYS_S = (0.2, 0.5)
"""Pauses before the second and the third attempt; after that the client decides whether to ask again."""


class AdapterSource:
    """Finds a job's adapters by name. Concurrent callers share one download."""

    def __init__(
        self, job: str, store: Store, trainer: Callable[[], aiohttp.ClientSession], check: Callable[[Path], None]
    ) -> None:
        self.jobs = frozenset({job, probe_job(job)})
        self.store, self.trainer, self.check = store, trainer, check
        self.digests: dict[str, str] = {}
        """Digest of the manifest, by the name of each adapter that was handed out: its files had these digests."""
        self._downloads: dict[str, asyncio.Task[Path | None]] = {}

    async def folder(self, name: str) -> Path | None:
        """The adapter's folder; ``None`` where the trainer has no such version or the name is none of this job's.

        Raises :class:`~visionrl_inference.fetch.FetchError` where the trainer could not deliver,
        :class:`~visionrl_inference.adapters.check.AdapterError` where what it delivered must not be served, and
        ``OSError`` where it cannot be stored.
        """
        try:
            version = Version.parse(name)
        except ValueError:
            return None
        if version.job not in self.jobs:
            return None
        if name not in self._downloads:
            download = asyncio.create_task(asyncio.to_thread(self._find, version))
            download.add_done_callback(lambda _: self._downloads.pop(name, None))
            self._downloads[name] = download
        # Shielded: a client that hangs up does not end the download for those who wait with it.
        return await asyncio.shield(self._downloads[name])

    def _find(self, version: Version) -> Path | None:
        """Runs in a thread, where hashing and writing hold nobody up."""
        digest = self.store.digest(version) or asyncio.run(self._fetch(version))
        if digest is None:
            return None
        self.digests[version.name] = digest
        return self.store.folder(version.name)

    async def _fetch(self, version: Version) -> str | None:
        for delay in (*RETRY_DELAYS_S, None):
            try:
                return await self._fetch_once(version)
            except MissingError:
                return None
            except KeyRefusedError:
                raise
            except FetchError as error:
                logger.warning("adapter %s: %s", version.name, error)
                if delay is None:
                    raise
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def _fetch_once(self, version: Version) -> str:
        started, path = time.monotonic(), f"/adapters/{version.name}"
        async with self.trainer() as client:
            manifest = await fetch_manifest(client, path)
            if set(manifest.files) != ADAPTER_FILES or manifest.size > MAX_ADAPTER_BYTES:
                raise FetchError(
                    f"{path}: expected {sorted(ADAPTER_FILES)}, got {sorted(manifest.files)}, {manifest.size} bytes"
                )
            if not version.matches(manifest):
                raise FetchError(f"{path}: the trainer has other content by this name, with digest {manifest.digest}")
            await fetch_folder(client, path, manifest, self.store.folder(version.name), self.check)
        logger.info("fetched adapter %s: %d bytes in %.3f s", version.name, manifest.size, time.monotonic() - started)
        return manifest.digest
