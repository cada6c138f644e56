"""Histograms that fit on a line of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

BINS = 25


class Histogram(BaseModel):
    """Counts in bins of equal width from ``low`` to ``high``."""

    low: float
    high: float
    counts: list[int]

    @classmethod
    def of(cls, values: Sequence[float]) -> Histogram:
        """Of finite values; one value has a bin around it."""
        counts, edges = np.histogram(np.asarray(values, dtype=float), bins=BINS)
        return cls(low=float(edges[0]), high=float(edges[-1]), counts=counts.tolist())
