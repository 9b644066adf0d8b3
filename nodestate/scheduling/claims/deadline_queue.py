"""The next deadline among the claims on each node, so that expired claims are found without looking at every record."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from nodestate.ports import ClaimStore
from nodestate.scheduling.claims.claim_servers import ClaimServers
from nodestate.scheduling.claims.record import CLOCK_S


class DeadlineQueue:
    """The earliest deadline of each node, in one heap for each server, as deadlines are times of a server's clock."""

    def __init__(self, servers: ClaimServers) -> None:
        self._servers = servers
        """The servers of the records."""
        self._heaps: dict[int, list[tuple[float, str]]] = {id(server): [] for server in servers}
        """For each server its (deadline, node) pairs; a pair that differs from ``_next`` is void."""
        self._next: dict[str, float] = {}
        """The deadline that is scheduled for each node."""

    def schedule(self, node: str, deadline: float | None) -> None:
        """Set a node's next deadline in place of the one before; None changes nothing."""
        if deadline is not None and self._next.get(node) != deadline:
            self._next[node] = deadline
            heapq.heappush(self._heaps[id(self._servers.of(node))], (deadline, node))

    def has_any(self, server: ClaimStore) -> bool:
        """Whether a deadline is scheduled on a server."""
        return bool(self._heaps[id(server)])

    def pop_passed(self, server: ClaimStore, now: float) -> Iterator[str]:
        """Remove and return, one after the other, the nodes of a server whose deadline has passed by ``CLOCK_S``."""
        heap = self._heaps[id(server)]
        while heap and heap[0][0] + CLOCK_S <= now:
            deadline, node = heapq.heappop(heap)
            if self._next.get(node) == deadline:
                del self._next[node]
                yield node
