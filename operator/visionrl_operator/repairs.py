"""The brake on repairs of one job's objects.

An object that somebody changes is put right at once. Where somebody changes it again and again, or the API server
itself does not keep what is applied (an admission policy), each further repair waits twice as long as the one before,
and the job says so in its condition *Drifted*.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from visionrl_core.drift import differences
from visionrl_core.manifests.common import HASH_ANNOTATION, Manifest, Ref, ref
from visionrl_operator.store import OwnedObject

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 2.0, 600.0
# A repair that lasted this long has worked.
HEALED_SECONDS = 3600.0
CONTESTED_REPAIRS = 3


@dataclass(frozen=True)
class _Applied:
    """What is known of the last time that an object was applied."""

    hash: str
    """Of the manifest."""
    at: float
    repairs: int
    """In a row, with the same manifest."""
    content: bytes
    """The object in the API server's answer."""
    refused: tuple[str, ...]
    """Fields that the answer did not have as they were applied."""
    changed: tuple[str, ...]
    """Fields that made the repair necessary."""


class Repairs:
    """Repairs of one job. ``clock`` returns seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._applied: dict[Ref, _Applied] = {}

    def wait(self, manifest: Manifest, live: OwnedObject | None) -> float | None:
        """Seconds until an object that differs from its manifest may be applied; None where that would change nothing,
        because the API server's answer was this very object the last time."""
        last = self._applied.get(ref(manifest))
        if last is None or last.hash != _hash(manifest):
            return 0.0
        if live is not None and live.content == last.content:
            return None
        delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (last.repairs - 1)) if last.repairs else 0.0
        return max(0.0, last.at + delay - self._clock())

    def note(self, manifest: Manifest, before: OwnedObject | None, after: OwnedObject | None) -> str:
        """An object was applied; ``before`` and ``after`` are how it was known. What was repaired, in one line, where
        that was somebody's doing and is worth an event."""
        name, now = ref(manifest), self._clock()
        last = self._applied.get(name)
        again = last is not None and last.hash == _hash(manifest)
        changed = _differences(manifest, before) if before is not None else ("deleted",)
        drifted = before.hash == sealed_or_empty(manifest) if before is not None else again
        healed = last is not None and now - last.at > HEALED_SECONDS
        repairs = (last.repairs if last is not None and again and not healed else 0) + int(again)
        self._applied[name] = _Applied(
            _hash(manifest),
            now,
            repairs,
            after.content if after is not None else b"",
            _without_bookkeeping(_differences(manifest, after)),
            changed,
        )
        if not (drifted and changed) or repairs > CONTESTED_REPAIRS:
            return ""
        return f"{name} was deleted" if before is None else f"{name}: {', '.join(changed)}"

    def forget(self, name: Ref) -> None:
        """We deleted the object ourselves."""
        self._applied.pop(name, None)

    def contested(self) -> dict[Ref, str]:
        """Objects that do not stay as they are applied, and what differs."""
        found = {}
        for name, last in self._applied.items():
            if last.refused:
                found[name] = f"{', '.join(last.refused)} is changed by the API server's admission"
            elif last.repairs >= CONTESTED_REPAIRS and self._clock() - last.at <= HEALED_SECONDS:
                found[name] = f"{', '.join(last.changed)}, repaired {last.repairs} times"
        return found


def sealed_or_empty(manifest: Manifest) -> str:
    found: str = manifest["metadata"].get("annotations", {}).get(HASH_ANNOTATION, "")
    return found


def _hash(manifest: Manifest) -> str:
    return sealed_or_empty(manifest)


def _differences(manifest: Manifest, live: OwnedObject | None) -> tuple[str, ...]:
    return tuple(differences(manifest, live.live())) if live is not None and live.content else ()


def _without_bookkeeping(paths: tuple[str, ...]) -> tuple[str, ...]:
    """A policy that strips our annotations harms nobody."""
    return tuple(path for path in paths if not path.startswith("metadata.annotations."))
