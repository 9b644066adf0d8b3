"""A histogram with fixed buckets, which a hot path fills and a metrics page reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final


def doubling_bounds(first: float, count: int) -> tuple[float, ...]:
    """Return ``count`` upper bounds of buckets, each twice as large as the one before."""
    return tuple(first * 2**power for power in range(count))


DECISION_BOUNDS_S: Final = doubling_bounds(0.0001, 16)
"""Buckets for the parts of a decision of a scheduler: 0.1 ms to 3.3 s."""
COMMIT_BOUNDS_S: Final = doubling_bounds(0.0005, 12)
"""Buckets for a commit to a store, and for a confirm of the broker: 0.5 ms to 1.0 s."""
REFRESH_BOUNDS_S: Final = doubling_bounds(0.0001, 14)
"""Buckets for a refresh of a view: 0.1 ms to 0.8 s."""
PROPAGATION_BOUNDS_S: Final = doubling_bounds(0.001, 14)
"""Buckets for the time from an event to the view that shows it: 1 ms to 8.2 s."""
BATCH_BOUNDS: Final = doubling_bounds(1, 12)
"""Buckets for the number of messages of one commit: 1 to 2,048."""


class Histogram:
    """Numbers of observed values by bucket.

    One thread observes. Any thread may read ``counts`` and ``total`` meanwhile: it may miss the last value.

    Args:
        bounds: upper bounds of the buckets, rising. A last bucket without a bound is added.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        """Upper bounds of the buckets, the bound included; without the last bucket."""
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, the number of values in it."""
        self.total = 0.0
        """Sum of all values."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
