"""Leader election with a Lease: one of several operators works, the others stand by.

``kubernetes.aio.leaderelection`` does not bound its requests in time, so a leader that hangs in one does not step
down, ends at the first lost connection, writes local time as UTC and never gives its lease up. The protocol is
client-go's: a candidate waits until it has seen a lease unchanged for the lease's own duration, by its own clock, and
a leader steps down before others may take over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from visionrl_core.kinds import LEASE
from visionrl_operator.api import Api, ApiError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """In seconds: ``lease > renew_deadline > retry``."""

    lease: float = 15.0
    """Others take over when the lease was not renewed for this long."""
    renew_deadline: float = 10.0
    """The leader steps down when it could not renew for this long."""
    retry: float = 2.0
    """Between looks at the lease, and between renewals."""


class LostLease(Exception):
    """Another process may lead by now."""


class Leader:
    """One candidate. ``identity`` is unique among all processes; ``name`` is the lease's, one for each release."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        name: str,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._namespace, self._identity, self._name = api, namespace, identity, name
        self._timing, self._clock = timing or Timing(), clock
        self._seen: dict[str, Any] = {}
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Wait until this process leads."""
        logged = ""
        while True:
            try:
                if await self.try_once():
                    return
                holder = self._seen.get("holderIdentity") or ""
                if holder != logged:
                    logger.info("standing by: %s leads", holder)
                    logged = holder
            except (ApiError, TimeoutError) as error:
                logger.warning("the lease cannot be read or written: %s", error or "timeout")
            await asyncio.sleep(self._timing.retry)

    async def hold(self) -> None:
        """Renew for ever. Raises :class:`LostLease`."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._timing.retry)
            left = self._timing.renew_deadline - (self._clock() - renewed)
            problem: object = "the lease changed meanwhile"
            try:
                async with asyncio.timeout(max(0.0, left)):
                    if await self.try_once():
                        renewed = self._clock()
                        continue
            except (ApiError, TimeoutError) as error:
                problem = error
            # Nobody else can have taken the lease before it expires. A conflict is somebody's annotation, or our own
            # renewal whose answer was lost; the next look tells.
            if (holder := self._seen.get("holderIdentity")) not in ("", None, self._identity):
                raise LostLease(f"{holder} holds the lease")
            if not self._clock() - renewed < self._timing.renew_deadline:
                raise LostLease(f"not renewed for {self._timing.renew_deadline:g} s: {problem}")

    async def release(self) -> None:
        """Let another process lead at once. Never raises: the lease ends by itself."""
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
            if lease is None or lease.get("spec", {}).get("holderIdentity") != self._identity:
                return
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            await self._api.replace(LEASE, self._namespace, self._name, lease)
        except ApiError as error:
            logger.warning("the lease could not be given up, it ends by itself: %s", error)

    async def try_once(self) -> bool:
        """Take or renew the lease, if it is free or ours; whether it is ours now."""
        lease = await self._api.get(LEASE, self._namespace, self._name)
        if lease is None:
            body = {
                "apiVersion": LEASE.api_version,
                "kind": LEASE.name,
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": self._spec({}),
            }
            return await self._api.create(LEASE, self._namespace, body) is not None
        spec = lease.get("spec", {})
        if spec != self._seen:
            self._seen, self._seen_at = spec, self._clock()
        if not self._may_take(spec):
            return False
        replaced = await self._api.replace(LEASE, self._namespace, self._name, {**lease, "spec": self._spec(spec)})
        return replaced is not None

    def _may_take(self, spec: dict[str, Any]) -> bool:
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        duration = spec.get("leaseDurationSeconds") or self._timing.lease
        return self._clock() - self._seen_at >= float(duration)

    def _spec(self, old: dict[str, Any]) -> dict[str, Any]:
        ours, now = old.get("holderIdentity") == self._identity, _now()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, int(self._timing.lease)),
            "acquireTime": old.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (0 if ours or not old else 1),
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
