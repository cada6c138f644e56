"""Training and validation without leakage: by environment seed, never by episode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TypeAlias

from visionrl.data.config import Split

World: TypeAlias = tuple[str, int]
"""Environment and seed: the same start state."""


def validation_worlds(achievements: Mapping[World, float], split: Split) -> frozenset[World]:
    """The worlds for validation: `val` of them, rounded, and at least one where `val` is above 0 and there are two.

    `achievements` has each world's mean; stratified, every n-th of the worlds in the order of their means is taken.
    The result depends on the worlds and the split's seed, not on the order of the worlds.
    """
    count = round(split.val * len(achievements))
    if split.val > 0 and len(achievements) > 1:
        count = min(max(count, 1), len(achievements) - 1)
    stratified = split.stratify_by == "achievements"
    order = sorted(
        achievements, key=lambda world: (round(achievements[world]) if stratified else 0, _draw(world, split.seed))
    )
    if count == 0 or len(achievements) < 2:
        return frozenset()
    # The first position is random too, so that validation is not always the weakest of each stretch.
    stretch = len(order) / count
    offset = stretch * int.from_bytes(_draw(("", split.seed), split.seed)[:4]) / 2**32
    return frozenset(order[min(math.floor(offset + index * stretch), len(order) - 1)] for index in range(count))


def _draw(world: World, seed: int) -> bytes:
    """A random position that depends only on its arguments."""
    return hashlib.sha256(f"{seed}/{world[0]}/{world[1]}".encode()).digest()
