"""From an adapter's name to its folder: the trainer's files, fetched once and checked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from visionrl_inference.adapters.check import FILES
from visionrl_inference.adapters.names import VersionNames
from visionrl_inference.adapters.store import Store
from visionrl_inference.fetch import FetchError, KeyRefusedError, MissingError, fetch_folder, fetch_manifest

logger = logging.getLogger("vllm.visionrl")  # below vLLM's logger, so that its handler and level apply

MAX_ADAPTER_BYTES = 8 << 30
RETRY_DELAYS_S = (0.2, 0.5)
"""Pauses before the second and the third attempt; after that the client decides whether to ask again."""


class AdapterSource:
    """Finds adapters by name. Concurrent callers share one download."""

    def __init__(
        self,
        names: VersionNames,
        store: Store,
        trainer: Callable[[], httpx.Client],
        check: Callable[[Path], None],
    ) -> None:
        self.names, self.store, self.trainer, self.check = names, store, trainer, check
        self._downloads: dict[str, asyncio.Task[Path | None]] = {}

    async def folder(self, name: str) -> Path | None:
        """The adapter's folder; ``None`` where the trainer has no such version or the name is none of this job's.

        Raises :class:`~visionrl_inference.fetch.FetchError` where the trainer could not deliver, and
        :class:`~visionrl_inference.adapters.check.AdapterError` where what it delivered must not be served.
        """
        if self.names.version(name) is None:
            return None
        if self.store.has(name):
            return self.store.folder(name)
        if name not in self._downloads:
            download = asyncio.create_task(asyncio.to_thread(self._fetch, name))
            download.add_done_callback(lambda _: self._downloads.pop(name, None))
            self._downloads[name] = download
        # Shielded: a client that hangs up does not end the download for those who wait with it.
        return await asyncio.shield(self._downloads[name])

    def _fetch(self, name: str) -> Path | None:
        for delay in (*RETRY_DELAYS_S, None):
            try:
                return self._fetch_once(name)
            except MissingError:
                return None
            except KeyRefusedError:
                raise
            except FetchError as error:
                logger.warning("adapter %s: %s", name, error)
                if delay is None:
                    raise
                time.sleep(delay)
        raise AssertionError("unreachable")

    def _fetch_once(self, name: str) -> Path:
        started = time.monotonic()
        with self.trainer() as client:
            path, target = f"/adapters/{name}", self.store.folder(name)
            manifest = fetch_manifest(client, path)
            if set(manifest.files) != FILES or manifest.size > MAX_ADAPTER_BYTES:
                raise FetchError(
                    f"{path}: expected {sorted(FILES)}, got {sorted(manifest.files)}, {manifest.size} bytes"
                )
            fetch_folder(client, path, manifest, target, self.check)
        logger.info("fetched adapter %s: %d bytes in %.3f s", name, manifest.size, time.monotonic() - started)
        return target
