"""Seeds as people write them: ``0-299``, ``0,1,2``, or both mixed."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_SEED = 2**53
MAX_SEEDS = 100_000


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in the order in which they are named; ranges include both ends.

    Raises ``ValueError`` with what is wrong: no seed twice, none beyond 2⁵³, at most 100,000.

    >>> parse_seeds("0-3, 7")
    (0, 1, 2, 3, 7)
    """
    found: dict[int, None] = {}
    for seed in _listed(text):
        if seed in found:
            raise ValueError(f"seed {seed} is named twice")
        if len(found) == MAX_SEEDS:
            raise ValueError(f"more than {MAX_SEEDS} seeds")
        found[seed] = None
    return tuple(found)


def _listed(text: str) -> Iterator[int]:
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,16})(?:\s*-\s*([0-9]{1,16}))?\s*", item)
        if match is None:
            raise ValueError(f"{item.strip()!r} is neither a seed nor a range such as 0-299")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {item.strip()} ends before it begins")
        if last > MAX_SEED:
            raise ValueError(f"{last} is beyond the largest seed, {MAX_SEED}")
        yield from range(first, last + 1)


def seeds_text(seeds: tuple[int, ...]) -> str:
    """The shortest notation.

    >>> seeds_text((0, 1, 2, 3, 7))
    '0-3,7'
    """
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1][1:] = [seed]
        else:
            runs.append([seed])
    return ",".join("-".join(map(str, run)) for run in runs)
