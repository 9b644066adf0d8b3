"""One owned partition: all its nodes as folded, when each was last heard of, and the work between delivery and ack."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec
import numpy as np

from nodestate.consumers.statistics import EventCounts
from nodestate.consumers.watermarks import is_marker, watermark_of
from nodestate.errors import BadEventError
from nodestate.model import Event, FoldOutcome, Heartbeat, NodeRecord, fold, parse_event
from nodestate.model.partitioning import partition_of
from nodestate.ports import Delivery
from nodestate.store.liveness import NEVER_HEARD
from nodestate.store.ownership import OwnerStatus
from nodestate.store.partition_writer import Batch, PartitionWriter

_encode = msgspec.msgpack.Encoder().encode

MAX_SEGMENT_BYTES = 512 * 1024
"""Most bytes of events in one commit. A larger batch is split, so that a segment of the journal fits an item."""
MAX_CLOCK_AHEAD_S = 86_400.0
"""An event or incarnation further ahead of the consumer's clock is refused: it would win over all later ones."""
MIN_CLOCK_S = 1_000_000_000.0
"""An event or incarnation from before this time (2001) is refused: its clock was never set."""
BIN_HEADER_BYTES: Final = 5
"""Bytes that msgpack adds to each event of a segment."""


class ResyncBackoff(NamedTuple):
    """When an incomplete node is asked for a report again."""

    again_at: float
    """The earliest time of the next request, in monotonic seconds."""
    pause_s: float
    """The pause before that request; the next pause is twice as long."""


@dataclass(slots=True)
class Pending:
    """Work of one partition between the fold and the ack: a batch of events, new epochs, or repairs."""

    batch: Batch
    """The events to commit, and the nodes that they changed."""
    deliveries: list[Delivery]
    """Everything taken from the backlog for it, in order: events, markers and refused messages."""
    unconfirmed_designs: set[str]
    """Designs that still have to confirm the work. When none is left, the deliveries are acknowledged."""
    repair: frozenset[str] = frozenset()
    """Designs that write again what their store lost, instead of the batch."""
    bad: list[tuple[Delivery, BadEventError]] = field(default_factory=list)
    """Refused messages; each is acknowledged only after it is a dead letter."""
    caught_up_at: float = -math.inf
    """When the last watermark message in the batch was sent: once the batch is written, the partition is as far."""


class OwnedPartition:
    """The owner's state of one partition. Times are the owner's monotonic clock, in seconds.

    A node counts as heard of at the watermark before its event, not when the event came: a message may have waited for
    long, so its arrival is no sign of life. Whatever comes after a watermark was sent later than the watermark.
    """

    def __init__(self, number: int, writers: dict[str, PartitionWriter], taken_at: float) -> None:
        self.number = number
        """The partition's number in its layout."""
        self.taken_at = taken_at
        """When this consumer took it over."""
        self.writers = writers
        """A writer for each design, also for designs in ``joining`` and ``leaving``."""

        self.records: list[NodeRecord] = []
        """All nodes, by slot."""
        self.slots: dict[str, int] = {}
        """Each node's index in ``records`` and ``heard_at``."""
        self.heard_at: list[float] = []
        """By slot, when the node last gave a sign of life; minus infinity if that is not known."""
        self.incomplete: set[str] = set()
        """Nodes of which an event is missing, and which need a report."""
        self.resync_backoffs: dict[str, ResyncBackoff] = {}
        """By incomplete node that was asked for a report: when to ask again."""
        self.needs_full_resync = False
        """True if all nodes of the partition have to be asked for a report."""

        self.backlog: deque[Delivery] = deque()
        """Delivered messages that wait to be folded."""
        self.pending: Pending | None = None
        """The work that is being written; None if there is none."""
        self.refused: deque[tuple[Delivery, BadEventError]] = deque()
        """Messages to publish to the dead-letter queue, and to acknowledge after that."""

        self.caught_up_at = -math.inf
        """Everything that was in the queue at this time is written."""
        self.watermark_at = -math.inf
        """When the last watermark message that came back was sent."""
        self.complete = False
        """True if every node of the partition is known. Heads carry it to readers."""
        self.complete_after = math.inf
        """``complete`` becomes True when ``caught_up_at`` reaches this time."""

        self.lost: set[str] = set()
        """Designs whose epoch the store lost: a new one is to be begun."""
        self.joining: set[str] = set()
        """Designs to be written from now on, whose first epoch still has to be begun."""
        self.leaving: set[str] = set()
        """Designs that are no longer wanted, and are written until another one is."""
        self.wants_repair: set[str] = set()
        """Designs that a reader asked the owner to repair."""

    def fill(self, records: list[NodeRecord], ages_ms: bytes, now: float) -> None:
        """Start from stored nodes. ``ages_ms``: by slot, milliseconds between the last sign of life and ``now``, as
        little-endian uint32; nodes beyond its end were never heard of.
        """
        self.records = list(records)
        self.slots = {record.name: slot for slot, record in enumerate(records)}
        ages = np.frombuffer(ages_ms, "<u4").tolist()[: len(records)]
        self.heard_at = [now - age / 1000 if age != NEVER_HEARD else -math.inf for age in ages]
        self.heard_at += [-math.inf] * (len(records) - len(ages))
        self.incomplete = {record.name for record in records if record.incomplete}

    def drop_design(self, name: str) -> None:
        """Stop writing a design."""
        del self.writers[name]
        unconfirmed = self.pending.unconfirmed_designs if self.pending else set()
        for names in (self.lost, self.joining, self.wants_repair, unconfirmed):
            names.discard(name)

    def mark_uncertain(self, now: float) -> None:
        """Count the partition as incomplete until a watermark that is sent from ``now`` on comes back.

        For an epoch that the store lost. With it the store lost the term that tells who owns the partition: while this
        consumer was frozen another one may have taken the partition, and written events that this one never saw. Only a
        watermark that comes back proves that the broker still delivers the partition to this consumer.
        """
        self.complete, self.complete_after = False, max(self.complete_after, now)

    def status(self, now: float) -> OwnerStatus:
        """The owner's status to write into the head with the pending work: once the work is written, the partition has
        caught up to the last watermark in it. Without signs of life, which only ``full_status`` has.
        """
        caught_up_at = max(self.caught_up_at, self.pending.caught_up_at) if self.pending else self.caught_up_at
        behind_ms = min(max(0.0, now - caught_up_at) * 1000, float(NEVER_HEARD))
        return OwnerStatus(math.ceil(behind_ms), self.complete, said_at=now)

    def full_status(self, now: float) -> OwnerStatus:
        """The owner's status to write with a renewal, with the age of each node's last sign of life."""
        ages = np.minimum((now - np.array(self.heard_at, "f8")) * 1000, float(NEVER_HEARD))
        return replace(self.status(now), ages_ms=np.ceil(ages).astype("<u4").tobytes())

    def maintenance(self, designs: set[str], repair: frozenset[str] = frozenset()) -> Pending:
        """Work without events for these designs: a repair for each design in ``repair``, a new epoch for the others."""
        return Pending(Batch((), (), len(self.records)), [], set(designs), repair)

    def take_batch(self, wall: float, partitions: int, room_bytes: int, owner: str, counts: EventCounts) -> Pending:
        """Fold messages from the backlog until one commit is full.

        Args:
            wall: seconds since 1970, against which events' clocks are checked.
            partitions: number of partitions of the layout.
            room_bytes: the largest event or state that fits an item of every store.
            owner: the owner's name, by which it knows its own watermark messages.
            counts: counts every event by its outcome.

        Refused messages are in ``Pending.bad``. The result has no unconfirmed designs if no event changed a node.
        """
        size_before = len(self.records)
        events: list[bytes] = []
        changed: dict[int, None] = {}
        pending = Pending(Batch((), (), size_before), [], set())
        max_bytes, size = min(MAX_SEGMENT_BYTES, room_bytes), 0
        while self.backlog and (not size or size + len(self.backlog[0].body) <= max_bytes):
            delivery = self.backlog.popleft()
            pending.deliveries.append(delivery)
            if is_marker(delivery.body):
                self.watermark_at = max(self.watermark_at, watermark_of(delivery.body, owner))
                pending.caught_up_at = self.watermark_at
                continue
            body = delivery.body
            try:
                event = parse_event(body)
                self._check_partition(event, partitions)
            except BadEventError as error:
                pending.bad.append((delivery, error))
                continue
            try:
                _check_clock(event, wall)
                _require_room(len(body), room_bytes, "an event")
                outcome, slot = self._fold(event, room_bytes)
                counts.by_outcome[outcome.value] += 1
            except BadEventError as error:
                pending.bad.append((delivery, error))
                if error.reason == "clock" and not self._knows_incarnation(event):
                    continue  # an absurd incarnation must not win over anything
                # We cannot keep the event's content, but must record that a newer version exists, or the previous state
                # would look current. This holds for a refused clock as well: it may be this machine's clock that is
                # wrong, so that all events look absurd.
                version_only = _version_only(event)
                body = _encode(version_only)
                try:
                    _, slot = self._fold(version_only, room_bytes)
                except BadEventError:  # the state that we have of the node is over the limit already
                    self.incomplete.add(event.node)
                    continue
            if slot is not None:
                events.append(body)
                changed[slot] = None
                size += len(body) + BIN_HEADER_BYTES
        for _, refused in pending.bad:
            counts.dead_letters[refused.reason] = counts.dead_letters.get(refused.reason, 0) + 1
        if events:
            pending.batch = Batch(tuple(events), tuple(changed), size_before)
            pending.unconfirmed_designs = self.writers.keys() - self.joining
        return pending

    def _check_partition(self, event: Event, partitions: int) -> None:
        if partition_of(event.node, partitions) != self.number:
            raise BadEventError(
                "wrong-partition",
                f"{event.node} belongs to partition {partition_of(event.node, partitions)} of {partitions}, and came "
                f"in the queue of partition {self.number}: check that its publisher runs the same version of nodestate",
            )

    def _knows_incarnation(self, event: Event) -> bool:
        slot = self.slots.get(event.node)
        return slot is not None and self.records[slot].incarnation == event.incarnation

    def _fold(self, event: Event, room_bytes: int) -> tuple[FoldOutcome, int | None]:
        """Fold one event into its node. Returns the outcome and the node's slot; no slot if nothing changed."""
        slot = self.slots.get(event.node)
        before = self.records[slot] if slot is not None else None
        record, outcome = fold(before, event)
        if outcome is not FoldOutcome.DUPLICATE and slot is not None:
            self.heard_at[slot] = max(self.heard_at[slot], self.watermark_at)
        if record is before or record is None:
            return outcome, None
        _require_room(len(record.body) + len(record.classes) + len(record.columns), room_bytes, "a state")
        if slot is None:
            slot = self.slots[event.node] = len(self.records)
            self.records.append(record)
            self.heard_at.append(self.watermark_at)
        else:
            self.records[slot] = record
        if record.incomplete:
            self.incomplete.add(record.name)
        elif self.incomplete:
            self.incomplete.discard(record.name)
            self.resync_backoffs.pop(record.name, None)
        return outcome, slot


def _check_clock(event: Event, wall: float) -> None:
    for what, seconds in (("reported_at", event.reported_at), ("incarnation", event.incarnation)):
        if not MIN_CLOCK_S <= seconds <= wall + MAX_CLOCK_AHEAD_S:
            raise BadEventError(
                "clock", f"{what} {seconds} is too far from the consumer's clock ({wall:.0f}): set the node's clock"
            )


def _version_only(event: Event) -> Heartbeat:
    """An event that says only that this version of the node exists."""
    return Heartbeat(
        node=event.node, incarnation=event.incarnation, generation=event.generation, reported_at=event.reported_at
    )


def _require_room(size: int, room_bytes: int, what: str) -> None:
    if size > room_bytes:
        raise BadEventError(
            "too-large",
            f"{what} of {size:,} bytes does not fit an item of the store, which holds {room_bytes:,}: "
            "raise the item limit of memcached (-I)",
        )
