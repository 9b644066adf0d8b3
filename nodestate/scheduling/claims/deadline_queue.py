"""The earliest deadline of the claims on each node, so that expired claims are found without reading every record."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from nodestate.scheduling.claims.claim_servers import ClaimServers
from nodestate.scheduling.claims.record import CLOCK_S


class DeadlineQueue:
    """The earliest deadline of each node, in one heap for each home.

    Each home has its own heap because a deadline is a time of its clock, see ``ClaimServers``.

    A deadline stays scheduled if its claim is dropped: when it passes, the next deadline of the node is scheduled.
    """

    def __init__(self, servers: ClaimServers) -> None:
        self._servers = servers
        """The servers of the records."""
        self._heaps: list[list[tuple[float, str]]] = [[] for _ in range(len(servers))]
        """The (deadline, node) pairs of each home. A pair is out of date if ``_next`` has another deadline."""
        self._next: dict[str, float] = {}
        """The deadline that is scheduled for each node."""

    def schedule(self, node: str, deadline: float | None) -> None:
        """Schedule a deadline of a node, unless an earlier one is scheduled. None changes nothing."""
        if deadline is not None and deadline < self._next.get(node, math.inf):
            self._next[node] = deadline
            heapq.heappush(self._heaps[self._servers.home(node)], (deadline, node))

    def has_any(self, home: int) -> bool:
        """Return whether a node with this home has a deadline."""
        return bool(self._heaps[home])

    def pop_passed(self, home: int, now: float) -> Iterator[str]:
        """Remove and yield the nodes of a home whose deadline is at least ``CLOCK_S`` in the past.

        Args:
            home: The number of the home.
            now: Seconds of that home's clock.
        """
        heap = self._heaps[home]
        while heap and heap[0][0] + CLOCK_S <= now:
            deadline, node = heapq.heappop(heap)
            if self._next.get(node) == deadline:
                del self._next[node]
                yield node
