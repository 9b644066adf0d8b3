"""Schedules of an agent's nodes: when each node's heartbeat is due, and when each node answers a resync request."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator


class HeartbeatSchedule:
    """Schedules heartbeats at a fixed interval. Each node has a random phase, so that not all nodes send at once."""

    def __init__(self, interval_s: float, rng: random.Random) -> None:
        self._interval_s = interval_s
        """Seconds between two heartbeats of a node."""
        self._rng = rng
        """Draws the phases."""
        self._heap: list[tuple[float, str]] = []
        """A heap of (due time in monotonic seconds, node), with one entry for each node."""

    def add(self, node: str, now: float) -> None:
        """Schedule a node's heartbeats. The first is due within one interval after ``now``, in monotonic seconds."""
        heapq.heappush(self._heap, (now + self._rng.uniform(0.0, self._interval_s), node))

    def due(self, now: float) -> Iterator[str]:
        """Yield the nodes whose heartbeat is due, and schedule the next one of each. Missed heartbeats are skipped."""
        while self._heap and self._heap[0][0] <= now:
            due_at, node = self._heap[0]
            missed = (now - due_at) // self._interval_s
            heapq.heapreplace(self._heap, (due_at + (missed + 1) * self._interval_s, node))
            yield node

    @property
    def next_at(self) -> float:
        """When the next heartbeat is due, in monotonic seconds; infinity if there are no nodes."""
        return self._heap[0][0] if self._heap else math.inf


class ReportSchedule:
    """Schedules the reports that answer resync requests, each at a random moment of its request's jitter."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        """Draws the moments."""
        self._heap: list[tuple[float, str]] = []
        """A heap of (due time in monotonic seconds, node)."""
        self._due_at: dict[str, float] = {}
        """By node, when its report is due. Other entries of the heap are void."""

    def add(self, node: str, now: float, jitter_s: float) -> None:
        """Schedule a report of the node within ``jitter_s`` seconds after ``now``, unless an earlier one is scheduled.

        So one report answers several requests, and a request with a long jitter delays no other.
        """
        due_at = now + self._rng.uniform(0.0, jitter_s)
        if due_at < self._due_at.get(node, math.inf):
            self._due_at[node] = due_at
            heapq.heappush(self._heap, (due_at, node))

    def due(self, now: float) -> Iterator[str]:
        """Yield the nodes whose report is due, and remove each from the schedule."""
        while self._heap and self._heap[0][0] <= now:
            due_at, node = heapq.heappop(self._heap)
            if self._due_at.get(node) == due_at:
                del self._due_at[node]
                yield node

    @property
    def next_at(self) -> float:
        """When to look for due reports next, in monotonic seconds; infinity if none is scheduled."""
        return self._heap[0][0] if self._heap else math.inf
