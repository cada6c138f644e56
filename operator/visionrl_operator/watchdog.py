"""Finds watches that have stalled: lists all objects periodically and compares.

A watch can stall without an error, and one that restarts does not report what was deleted meanwhile. What a list
shows and the store does not know is given a while to arrive; what is still missing then is put right from the list.
When that happens twice in a row for a kind, its watch is dead, and the process ends to be restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from visionrl_core.kinds import JOB, OWNED_SELECTOR, WATCHED_KINDS, Kind, Offered
from visionrl_operator.api import Api, ApiError, Body
from visionrl_operator.store import Key, OwnedObject, Store, StoredJob, version_of

PAGE = 500
STRIKES = 2

logger = logging.getLogger(__name__)


class Stalled(Exception):
    """A watch delivers no events."""


def watched(offered: Offered) -> tuple[Kind, ...]:
    """The kinds that are watched, the job's first."""
    return (JOB, *WATCHED_KINDS, *offered.kinds)


@dataclass
class Listing:
    """What a list showed, of thousands of objects only what is needed."""

    uids: set[str] = field(default_factory=set)
    unknown: list[Body] = field(default_factory=list)
    """Objects of which the store did not know what the list showed."""
    version: int = 0
    """What was deleted after it is not missing."""


class Watchdog:
    """``namespaces`` empty means all. ``missed`` counts the objects of a kind that a watch did not report."""

    def __init__(
        self,
        api: Api,
        store: Store,
        namespaces: Sequence[str],
        missed: Callable[[str, int], None] = lambda kind, count: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        kinds: Sequence[Kind] = watched(Offered()),
    ) -> None:
        self._api, self._store, self._missed, self._sleep = api, store, missed, sleep
        self._namespaces: list[str | None] = list(namespaces) or [None]
        self._kinds = kinds
        self._strikes: dict[Kind, int] = {}

    async def list_everything(self) -> None:
        """Fill the store, jobs first: of a known job, all objects are known. Raises ``ApiError``."""
        for kind in self._kinds:
            async for items, _ in self._pages(kind, cached=False):
                for body in items:
                    self._store.feed(kind.name, body)

    async def run(self, interval: float, grace: float) -> None:
        """Compare now, and again after every interval, for ever. Raises :class:`Stalled`."""
        while True:
            for kind in self._kinds:
                try:
                    await self.check(kind, grace)
                except ApiError as error:
                    logger.warning("%s cannot be listed: %s", kind.plural, error)
            await self._sleep(interval)

    async def check(self, kind: Kind, grace: float) -> None:
        """Compare one kind. Raises :class:`Stalled` at the second strike in a row."""
        listing = await self._list(kind)
        if listing.unknown or self._vanished(kind, listing):
            await self._sleep(grace)
        unknown = [body for body in listing.unknown if not self._knows(kind, body)]
        vanished = self._vanished(kind, listing)
        for body in unknown:
            self._store.feed(kind.name, body)
        for key, entry in vanished:
            self._store.forget(kind.name, entry, key)
        missed = len(unknown) + len(vanished)
        self._strikes[kind] = self._strikes.get(kind, 0) + 1 if missed else 0
        if missed:
            self._missed(kind.name, missed)
            logger.warning("the watch missed %d %s; corrected from a list", missed, kind.plural)
        if self._strikes[kind] >= STRIKES:
            raise Stalled(f"the watch of {kind.plural} delivers no events")

    async def _list(self, kind: Kind) -> Listing:
        listing = Listing()
        async for items, version in self._pages(kind, cached=True):
            listing.uids.update(body["metadata"]["uid"] for body in items)
            listing.unknown += [body for body in items if not self._knows(kind, body)]
            listing.version = min(listing.version or version, version)
        return listing

    async def _pages(self, kind: Kind, cached: bool) -> AsyncIterator[tuple[list[Body], int]]:
        """Objects and the version of the list that they are from. ``cached`` lets the API server answer from memory,
        a little late perhaps."""
        parameters: dict[str, str | int] = {"limit": PAGE}
        if kind != JOB:
            parameters["labelSelector"] = OWNED_SELECTOR
        for namespace in self._namespaces:
            more: dict[str, str] = {"resourceVersion": "0"} if cached else {}
            while True:
                page = await self._api.list(kind, namespace, **parameters, **more)
                yield page["items"], version_of(page)
                token = page["metadata"].get("continue")
                if not token:
                    break
                more = {"continue": token}

    def _knows(self, kind: Kind, body: Body) -> bool:
        entry = self._store.find(kind.name, body)
        return self._store.knows(body["metadata"]["uid"], entry, version_of(body))

    def _vanished(self, kind: Kind, listing: Listing) -> list[tuple[Key, OwnedObject | StoredJob]]:
        return [
            (key, entry)
            for key, entry in self._store.entries(kind.name)
            if entry.uid not in listing.uids and entry.version <= listing.version
        ]
