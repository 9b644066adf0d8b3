"""Polled sources: a source of an agent, with the incarnation of its nodes and the time of its next poll."""

from __future__ import annotations

from dataclasses import dataclass

from nodestate.agent.incarnation import IncarnationLock
from nodestate.agent.sources import StateSource


@dataclass(slots=True)
class PolledSource:
    """One source, with the incarnation of its nodes and the time of its next poll."""

    source: StateSource
    """The source."""
    incarnation: int
    """The incarnation of all its nodes."""
    lock: IncarnationLock | None
    """Holds the lock on the source's name; None if the caller gave the incarnation."""
    poll_at: float
    """When the source is polled next, in monotonic seconds."""
    failing: bool = False
    """True if the last poll failed. The agent then publishes no heartbeats of the source's nodes."""

    def incarnation_above(self, other: int, now: float) -> int:
        """Return an incarnation above ``other``; it is stored first. ``now`` is in seconds since 1970.

        The source's other nodes keep their incarnation. Raises ``ConfigError`` if the number can't be stored.
        """
        number = max(int(now), other + 1)
        if self.lock is not None:
            self.lock.raise_to(number)
        return number
