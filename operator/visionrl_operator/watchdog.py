"""Watches that fall silent: lists now and then, and compares.

A watch can stall without an error, and one that starts over does not tell what was deleted meanwhile. What a list
shows and the store does not know is given a while to arrive; what is still missing then is put right from the list.
When that happens twice in a row for a kind, its watch is dead, and the process ends to be restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from visionrl_operator.api import Api, ApiError, Body
from visionrl_operator.kinds import CHILD_SELECTOR, JOB, WATCHED_CHILDREN, Kind
from visionrl_operator.store import Child, Key, Store, StoredJob, version_of

KINDS = (JOB, *WATCHED_CHILDREN)
PAGE = 500
STRIKES = 2

logger = logging.getLogger(__name__)


class Stalled(Exception):
    """A watch brings no news."""


@dataclass(frozen=True)
class Listing:
    """A kind's objects at one time."""

    kind: Kind
    items: list[Body]
    version: int


class Watchdog:
    """``namespaces`` empty means all. ``missed`` counts the objects of a kind that a watch did not tell of."""

    def __init__(
        self,
        api: Api,
        store: Store,
        namespaces: Sequence[str],
        missed: Callable[[str, int], None] = lambda kind, count: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api, self._store, self._missed, self._sleep = api, store, missed, sleep
        self._namespaces: list[str | None] = list(namespaces) or [None]
        self._strikes: dict[Kind, int] = {}

    async def wait_until_synced(self, patience: float = 10.0, step: float = 0.05) -> None:
        """Until the watches have told of everything that exists."""
        for kind in KINDS:
            while True:
                listing = await self._list(kind, cached=False)
                waited = 0.0
                while (unknown := self._unknown(listing)) and waited < patience:
                    await self._sleep(step)
                    waited += step
                if not unknown:
                    break
                logger.warning("%d %s have not been told of yet", len(unknown), kind.plural)
            self._drop_vanished(listing)

    async def run(self, interval: float, grace: float) -> None:
        """Compare for ever. Raises :class:`Stalled`."""
        while True:
            await self._sleep(interval)
            for kind in KINDS:
                try:
                    await self.check(kind, grace)
                except ApiError as error:
                    logger.warning("%s cannot be listed: %s", kind.plural, error)

    async def check(self, kind: Kind, grace: float) -> None:
        """Compare one kind. Raises :class:`Stalled` at the second strike in a row."""
        listing = await self._list(kind, cached=True)
        if self._unknown(listing) or self._vanished(listing):
            await self._sleep(grace)
        unknown = self._unknown(listing)
        missed = len(unknown) + self._drop_vanished(listing)
        for body in unknown:
            self._store.feed(kind.name, body)
        self._strikes[kind] = self._strikes.get(kind, 0) + 1 if missed else 0
        if missed:
            self._missed(kind.name, missed)
            logger.warning("the watch did not tell of %d %s; put right from a list", missed, kind.plural)
        if self._strikes[kind] >= STRIKES:
            raise Stalled(f"the watch of {kind.plural} brings no news")

    async def _list(self, kind: Kind, cached: bool) -> Listing:
        items: list[Body] = []
        version = 0
        for namespace in self._namespaces:
            parameters: dict[str, str | int] = {"limit": PAGE}
            if kind != JOB:
                parameters["labelSelector"] = CHILD_SELECTOR
            first = {"resourceVersion": "0"} if cached else {}
            page = await self._api.list(kind, namespace, **parameters, **first)
            found = list(page["items"])
            while token := page["metadata"].get("continue"):
                page = await self._api.list(kind, namespace, **parameters, **{"continue": token})
                found += page["items"]
            items += found
            # What was deleted after the oldest of the lists is not missing from it.
            oldest = version_of(page)
            version = min(version, oldest) if version else oldest
        return Listing(kind, items, version)

    def _unknown(self, listing: Listing) -> list[Body]:
        name, store = listing.kind.name, self._store
        return [
            body
            for body in listing.items
            if not store.knows(body["metadata"]["uid"], store.find(name, body), version_of(body))
        ]

    def _vanished(self, listing: Listing) -> list[tuple[Key, Child | StoredJob]]:
        listed = {body["metadata"]["uid"] for body in listing.items}
        return [
            (key, entry)
            for key, entry in self._store.entries(listing.kind.name)
            if entry.uid not in listed and entry.version <= listing.version
        ]

    def _drop_vanished(self, listing: Listing) -> int:
        vanished = self._vanished(listing)
        for key, entry in vanished:
            self._store.forget(listing.kind.name, entry, key)
        return len(vanished)
