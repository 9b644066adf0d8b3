"""Counters of a consumer. ``nodestate consume`` prints them, and the metrics are computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from nodestate.errors import NodestateError, StoreError
from nodestate.histogram import BATCH_BOUNDS, COMMIT_BOUNDS_S, Histogram
from nodestate.model import FoldOutcome


@dataclass(slots=True)
class EventCounts:
    """Numbers of events by result, since the consumer started."""

    by_outcome: dict[str, int] = field(default_factory=lambda: {outcome.value: 0 for outcome in FoldOutcome})
    """Number of folded events, by value of their ``FoldOutcome``."""
    dead_letters: dict[str, int] = field(default_factory=dict)
    """Number of refused messages, by reason of their ``BadEventError``."""
    unsigned: int = 0
    """Messages that were accepted without a valid signature, in the modes accept and warn of ``auth_events``."""
    foreign_watermarks: int = 0
    """Number of ignored watermark messages: of a former owner, whose messages were still in the queue, or forged."""


class Durations:
    """Durations of the commits of one consumer, and numbers of their messages."""

    def __init__(self) -> None:
        self.commits_s: dict[str, Histogram] = {}
        """By design, the seconds that one partition's commit took."""
        self.batch_messages = Histogram(BATCH_BOUNDS)
        """Messages of one partition's commit."""

    def commit_s(self, design: str) -> Histogram:
        """Return the histogram of the commits in one design."""
        found = self.commits_s.get(design)
        if found is None:
            found = self.commits_s[design] = Histogram(COMMIT_BOUNDS_S)
        return found


@dataclass(slots=True)
class ConsumerStats:
    """Counters of one consumer, since it started."""

    counts: EventCounts = field(default_factory=EventCounts)
    """Numbers of events by result."""
    sessions: int = 0
    """Sessions with the broker that began."""
    received: int = 0
    """Messages that the broker delivered, including markers and messages that it delivered again."""
    acked: int = 0
    """Messages that the consumer acknowledged."""
    commits: int = 0
    """Batches, new epochs and repairs that a store confirmed, one per partition and design."""
    takeovers: int = 0
    """Partitions that the consumer took over."""
    fenced: int = 0
    """Writes refused because another owner had taken the partition."""
    epochs_begun: int = 0
    """New epochs begun, one per partition and design."""
    repairs: int = 0
    """Repairs that readers asked for, or that a change of the signatures of stored values needed."""
    resyncs: int = 0
    """Resync requests sent to agents."""
    store_errors: int = 0
    """Failed takeovers, writes and renewals, one per partition and design."""
    store_errors_by_server: dict[str, int] = field(default_factory=dict)
    """The same by name of the server; ``unknown`` if the error names none."""
    broker_errors: int = 0
    """Failed calls of the broker."""
    unsigned_controls: int = 0
    """Control records accepted without a valid signature, in the modes accept and warn of ``auth_control``."""
    refused_controls: int = 0
    """Control records that were refused because of their signature."""
    durations: Durations = field(default_factory=Durations)
    """Durations and sizes of commits."""

    def count_store_error(self, error: NodestateError) -> None:
        """Count a failed takeover, write or renewal of a partition."""
        self.store_errors += 1
        server = (error.server if isinstance(error, StoreError) else "") or "unknown"
        self.store_errors_by_server[server] = self.store_errors_by_server.get(server, 0) + 1
