"""Counters of a reader."""

from __future__ import annotations

from typing import Final, Literal

from nodestate.designs.propagation import Propagation
from nodestate.errors import BehindError, StaleViewError
from nodestate.histogram import REFRESH_BOUNDS_S, Histogram

RefreshResult = Literal["ok", "partial", "failed"]

REFUSAL_CAUSES: Final = ("stale-view", "stale-nodes", "behind")
"""Causes for which a read is refused: a partition is too old, a node is too old, or a receipt is not reached."""


class ReaderStats:
    """Counters of one reader, since it was opened. One thread counts at a time; any thread may read them."""

    def __init__(self) -> None:
        self.refreshes: dict[tuple[str, RefreshResult], Histogram] = {}
        """By design and result, the seconds that a refresh took."""
        self.refusals: dict[str, int] = dict.fromkeys(REFUSAL_CAUSES, 0)
        """By cause, the number of reads that were refused."""
        self.propagation = Propagation()
        """The times from events of nodes until a view showed them."""

    def observe_refresh(self, design: str, seconds: float, failed_count: int, partitions: int) -> None:
        """Count a refresh.

        Args:
            design: the design that was refreshed.
            seconds: the time that it took.
            failed_count: number of partitions that could not be refreshed.
            partitions: number of all partitions.
        """
        result: RefreshResult = "ok" if not failed_count else "partial" if failed_count < partitions else "failed"
        found = self.refreshes.get((design, result))
        if found is None:
            found = self.refreshes[design, result] = Histogram(REFRESH_BOUNDS_S)
        found.observe(seconds)

    def count_refusal(self, error: StaleViewError | BehindError) -> None:
        """Count a read that was refused with this error."""
        cause = "behind"
        if isinstance(error, StaleViewError):
            cause = "stale-view" if error.partitions else "stale-nodes"
        self.refusals[cause] += 1
