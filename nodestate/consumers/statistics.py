"""Counters of a consumer. ``nodestate consume`` prints them, and the metrics are computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    broker_errors: int = 0
    """Failed calls of the broker."""
    unsigned_controls: int = 0
    """Control records accepted without a valid signature, in the modes accept and warn of ``auth_control``."""
    refused_controls: int = 0
    """Control records that were refused because of their signature."""
