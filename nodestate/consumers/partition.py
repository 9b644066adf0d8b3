"""One owned partition: its folded nodes, their signs of life, and the work between delivery and acknowledgement."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from nodestate.auth import NO_AUTH, EventAuth
from nodestate.consumers.event_origin import check_origin
from nodestate.consumers.handover_messages import (
    HANDOVER,
    check_handed_over_clock,
    doubt_messages,
    handed_over_events,
    handover_refusal,
    may_be_watermark,
)
from nodestate.consumers.pending_work import Pending
from nodestate.consumers.statistics import EventCounts
from nodestate.consumers.watermarks import Watermarks, is_marker
from nodestate.designs import DESIGNS
from nodestate.errors import BadEventError, CorruptItemError
from nodestate.model import MAX_EVENT_BYTES, Event, FoldOutcome, Heartbeat, NodeRecord, check_clock, fold, parse_event
from nodestate.model.record import unknown_node
from nodestate.ports import QUEUE_BEGAN, Delivery
from nodestate.store.damage import DAMAGE
from nodestate.store.head import NEVER_HEARD
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.partition_writer import Batch, PartitionWriter

if TYPE_CHECKING:
    from nodestate.consumers.resync_requests import ResyncBackoff

_encode = msgspec.msgpack.Encoder().encode

MAX_SEGMENT_BYTES = 512 * 1024
"""Most bytes of events in one commit. A larger batch is split, so that each journal segment fits into one item."""
LONG_SILENCE_S: Final = 15.0
"""A node that is heard again after more than these seconds gets its sign of life stored with the event's commit.

Other signs of life wait for the next renewal. Agents send heartbeats every 10 s by default, so few commits write the
ages of all nodes.
"""
BIN_HEADER_BYTES: Final = 5
"""Bytes that msgpack adds to each event in a segment."""


class OwnedPartition:
    """The owner's state of one partition. All times are seconds of the owner's monotonic clock.

    When an event comes, the node gave its sign of life after the last watermark message before the event was sent. So
    the send time of that watermark message is used as the time of the sign of life. The time of the event's arrival
    would be too late, because the event may have waited in the queue for long.
    """

    def __init__(self, number: int, writers: dict[str, PartitionWriter], taken_at: float) -> None:
        self.number = number
        """The partition's number in its layout."""
        self.taken_at = taken_at
        """When this consumer took the partition over."""
        self.writers = writers
        """The writer of each design, including the designs in ``joining`` and ``retiring``."""

        self.records: list[NodeRecord] = []
        """The records of all nodes, by slot."""
        self.slots: dict[str, int] = {}
        """By name of a node, its index in ``records`` and ``heard_at``."""
        self.heard_at: list[float] = []
        """By slot, the time of the node's last sign of life; minus infinity if it is not known."""
        self.incomplete: set[str] = set()
        """Names of the nodes of which an event is missing. Each needs a report."""
        self.resync_backoffs: dict[str, ResyncBackoff] = {}
        """By name of an incomplete node that was asked for a report: when to ask it again."""
        self.needs_full_resync = False
        """True if all nodes of the partition must be asked for a report."""

        self.backlog: deque[Delivery] = deque()
        """Delivered messages that are not yet folded."""
        self.pending: Pending | None = None
        """The work that is being written; None if there is none."""
        self.refused: deque[tuple[Delivery, BadEventError]] = deque()
        """Refused messages with the reasons, to be published to the dead-letter queue and then acknowledged."""
        self.processed: list[Delivery] = []
        """Messages whose work is stored in every design, to be acknowledged unless ``withholds``."""

        self.caught_up_at = -math.inf
        """Everything that was in the queue at this time is stored in every design."""
        self.watermark_at = -math.inf
        """Send time of the newest watermark message that came back."""
        self.complete = False
        """True if every node of the partition is known. Readers learn this from the head."""
        self.complete_after = math.inf
        """``complete`` becomes True when ``caught_up_at`` reaches this time, unless agents are still to be asked."""
        self.begins_with_queue = False
        """True if the partition began with all nodes from before its queue was declared. So that queue lost nothing."""
        self.begins_empty = False
        """True if the partition began without any node. It then asks all agents, and is not complete before they could
        have answered, whether its queue is new or replaces another one.
        """
        self.queue_began = False
        """True once a message ``QUEUE_BEGAN`` came. The broker ends the session of an owner whose queue is deleted, so
        another such message to the same owner is of the same queue.
        """
        self.doubting: list[Delivery] = []
        """The messages ``QUEUE_BEGAN`` that are not acknowledged before the partition is complete again."""
        self.unheard: set[str] = set()
        """Nodes of which no event came since the queue of the partition was lost. An event of theirs may be lost."""

        self.lost: set[str] = set()
        """Designs whose epoch the store lost. A new epoch is begun for each of them."""
        self.joining: set[str] = set()
        """New designs, whose first epoch is not yet written."""
        self.alone: set[str] = set()
        """The replicas whose stored head says that it is the only one in sync, or may say so."""
        self.doubted: set[str] = set()
        """The designs in ``joining`` that could not be read at the takeover, and may have events that no other has."""
        self.taken_back: set[str] = set()
        """The designs in ``doubted`` whose newer nodes are in the backlog or folded."""
        self.acknowledges_from = -math.inf
        """Before this time no message is acknowledged while a design is in ``doubted``."""
        self.retiring: set[str] = set()
        """Designs to be deleted as soon as another design is written. Until then they are written."""
        self.wants_repair: set[str] = set()
        """Designs that a reader asked the owner to repair."""

    def fill(self, records: list[NodeRecord], heard_at: Mapping[str, float]) -> None:
        """Start from stored nodes.

        Args:
            records: the records of all nodes, in slot order.
            heard_at: by name, the time of the node's last sign of life. It is not known for nodes that are missing.
        """
        self.records = list(records)
        self.slots = {record.name: slot for slot, record in enumerate(records)}
        self.heard_at = [heard_at.get(record.name, -math.inf) for record in records]
        self.incomplete = {record.name for record in records if record.incomplete}

    def stored_records(self) -> list[NodeRecord]:
        """Return, in the order of slots, the record of each node as it was last stored in every design."""
        if self.pending is None:
            return self.records
        records = self.records[: self.pending.batch.size_before]
        for slot, record in self.pending.replaced.items():
            records[slot] = record
        return records

    def drop_design(self, name: str) -> None:
        """Stop writing a design. Pending work no longer waits for it."""
        del self.writers[name]
        unconfirmed = self.pending.unconfirmed_designs if self.pending else set()
        for names in (self.lost, self.joining, self.wants_repair, unconfirmed):
            names.discard(name)

    def request_repair(self, design: str) -> None:
        """Write the lost items of a design again, with the pending work if there is any."""
        if self.pending is None:
            self.wants_repair.add(design)
        else:
            self.pending.repair |= {design}
            self.pending.unconfirmed_designs.add(design)

    def mark_lost(self, design: str, now: float) -> None:
        """Begin another epoch of a design, whose epoch the store lost.

        Marks the partition as incomplete until a watermark message sent at ``now`` or later comes back: with the epoch,
        the store lost the term that tells which consumer owns the partition. While this consumer was frozen, another
        consumer may have taken the partition over and written events that this consumer never received. Only a
        watermark message that comes back proves that the broker still delivers the partition to this consumer.
        """
        self.lost.add(design)
        if self.pending is not None:
            self.pending.unconfirmed_designs.add(design)
        self.complete, self.complete_after = False, max(self.complete_after, now)

    def lose_queue(self) -> bool:
        """Mark the partition as incomplete until all agents were asked, because its queue was deleted.

        A confirmed event may have been lost with it, the ``leave`` of a node too. Each event from now on proves that
        its node exists, and which version it is at. Returns False if that changes nothing: the queue lost no event, all
        agents are asked anyhow, or the loss is known.
        """
        repeated, self.queue_began = self.queue_began, True
        if self.begins_with_queue or self.begins_empty or repeated:
            return False
        self.complete, self.needs_full_resync = False, True
        self.unheard = {record.name for record in self.records if not record.gone}
        return True

    def doubt_unheard(self) -> list[str]:
        """Mark every node in ``unheard`` as incomplete: a newer version may exist, which was lost. Returns their names.

        Puts messages at the end of the backlog that say so. A report of the node makes it complete again.
        """
        doubted = [record for record in self.records if record.name in self.unheard and not record.incomplete]
        self.unheard = set()
        self.backlog.extend(Delivery(self.number, body, None, 0) for body in doubt_messages(doubted))
        return [record.name for record in doubted]

    def withholds(self, now: float) -> bool:
        """True if no message may be acknowledged at ``now``, in monotonic seconds: see ``consumers.replicas``."""
        return now < self.acknowledges_from and len(self.doubted) > 0

    def copies(self, design: str) -> int:
        """Return how many replicas are in sync, ``design`` included: 1 if it has no other replica or is alone."""
        partner = DESIGNS[design].partner
        return 2 if partner in self.writers and partner not in self.joining else 1

    def status(self, now: float, design: str) -> OwnerStatus:
        """Return the owner's status to write into the head of a design together with the pending work.

        Once that work is stored, the partition has caught up to the last watermark message in it, and the status says
        so. The status has signs of life if the work is the first that was heard of a node, or the first after long.
        ``now`` is in monotonic seconds.
        """
        caught_up_at = max(self.caught_up_at, self.pending.caught_up_at) if self.pending else self.caught_up_at
        behind_ms = min(max(0.0, now - caught_up_at) * 1000, float(NEVER_HEARD))
        ages_ms = self.ages_ms(now) if self.pending is not None and self.pending.heard_again else b""
        refused, copies = len(self.refused), self.copies(design)
        return OwnerStatus(math.ceil(behind_ms), self.complete, ages_ms, now, refused, copies)

    def ages_ms(self, now: float) -> bytes:
        """Return the age of each node's last sign of life, as ``OwnerStatus`` has them. ``now``: monotonic seconds."""
        ages = np.minimum((now - np.array(self.heard_at, "f8")) * 1000, float(NEVER_HEARD))
        return np.ceil(ages).astype("<u4").tobytes()

    def maintenance(self, designs: set[str], repair: frozenset[str] = frozenset()) -> Pending:
        """Make work without events: a repair for each design in ``repair``, a new epoch for the other ``designs``."""
        return Pending(Batch((), (), len(self.records)), [], set(designs), repair)

    def take_batch(
        self,
        wall: float,
        partitions: int,
        room_bytes: int,
        watermarks: Watermarks,
        counts: EventCounts,
        auth: EventAuth = NO_AUTH,
    ) -> Pending:
        """Fold messages from the backlog until one commit is full or the backlog is empty.

        Args:
            wall: seconds since 1970. Events whose time or incarnation is too far from it are refused.
            partitions: number of partitions of the layout.
            room_bytes: size of the largest event or state that fits into an item of every store.
            watermarks: recognizes this consumer's own watermark messages. All others are ignored and counted.
            counts: counts folded events by outcome, and refused messages by reason.
            auth: checks the signatures of messages, and removes them, so that no store keeps them.

        Returns:
            The work to write. Refused messages are in its ``bad``. Its ``unconfirmed_designs`` are empty if no event
            changed a node, because then nothing has to be written.
        """
        size_before = len(self.records)
        events: list[bytes] = []
        changed: dict[int, None] = {}
        pending = Pending(Batch((), (), size_before), [], set())
        max_bytes, size = min(MAX_SEGMENT_BYTES, room_bytes), 0
        while self.backlog and (not size or size + len(self.backlog[0].body) <= max_bytes):
            delivery = self.backlog.popleft()
            pending.deliveries.append(delivery)
            if delivery.cut_from:
                pending.refuse(delivery, _too_large(delivery))
                continue
            if is_marker(delivery.body) and not delivery.routed:
                sent_at = watermarks.sent_at(self.number, delivery.body)
                if sent_at == -math.inf and may_be_watermark(delivery.body):
                    counts.foreign_watermarks += 1
                self.watermark_at = max(self.watermark_at, sent_at)
                pending.caught_up_at = self.watermark_at
                if delivery.body == QUEUE_BEGAN:
                    pending.lost_queue = self.lose_queue()
                    if not self.complete and not self.begins_with_queue:
                        self.doubting.append(delivery)
                if delivery.body.startswith(HANDOVER):
                    if events:  # the next batch begins with it: its size in a segment is known once it is decoded
                        self.backlog.appendleft(pending.deliveries.pop())
                        break
                    taken = self._take_handover(delivery, wall, partitions, room_bytes, pending, auth)
                    events += [body for body, _ in taken]
                    changed |= dict.fromkeys(slot for _, slot in taken)
                    size += sum(len(body) + BIN_HEADER_BYTES for body, _ in taken)
                continue
            body = delivery.body
            try:
                event = parse_event(body)
                check_origin(event, delivery, partitions)
                body = auth.events.check(event.node, body, event.signature)
            except BadEventError as error:
                pending.refuse(delivery, error)
                continue
            if self.unheard:
                self.unheard.discard(event.node)
            try:
                check_clock(event, wall)
                _require_room(len(body), room_bytes, "an event")
                outcome, slot = self._fold(event, room_bytes, pending, self.watermark_at)
                counts.by_outcome[outcome.value] += 1
            except BadEventError as error:
                pending.refuse(delivery, error)
                if error.reason == "clock" and not self._knows_incarnation(event):
                    continue  # an incarnation that may be wrong must not replace the node's incarnation
                # We cannot keep the event's content, but must record that a newer version exists, or the previous state
                # would look current. This holds also if the event was refused because of its time: if the clock of this
                # machine is wrong, all events are refused.
                version_only = _version_only(event)
                body = _encode(version_only)
                try:
                    _, slot = self._fold(version_only, room_bytes, pending, self.watermark_at)
                except BadEventError:  # the node's present state is over the limit already
                    self.incomplete.add(event.node)
                    continue
            if slot is not None:
                events.append(body)
                changed[slot] = None
                size += len(body) + BIN_HEADER_BYTES
        counts.unsigned = auth.unsigned
        for _, refused in pending.bad:
            counts.dead_letters[refused.reason] = counts.dead_letters.get(refused.reason, 0) + 1
        if events:
            pending.batch = Batch(tuple(events), tuple(changed), size_before)
            pending.unconfirmed_designs = self.writers.keys() - self.joining
        return pending

    def _knows_incarnation(self, event: Event) -> bool:
        """True if the record of the event's node has the same incarnation as the event."""
        slot = self.slots.get(event.node)
        return slot is not None and self.records[slot].incarnation == event.incarnation

    def _take_handover(
        self, delivery: Delivery, wall: float, partitions: int, room_bytes: int, pending: Pending, auth: EventAuth
    ) -> list[tuple[bytes, int]]:
        """Fold the events that a former owner sent. They are no signs of life of their nodes.

        The message is refused if its events do not fit into one commit. An event that an agent could not have sent is
        left out, and the message is refused for it. Doubts of this owner (session 0) had no time to become invalid.

        Returns the bytes and the slot of each event that changed a record.
        """
        taken: list[tuple[bytes, int]] = []
        max_bytes = min(MAX_SEGMENT_BYTES, room_bytes)
        received = handed_over_events(delivery.body) if len(delivery.body) <= max_bytes else ()
        events = list(received)
        size = max(len(delivery.body), sum(len(body) + BIN_HEADER_BYTES for _, body in events))
        if size > max_bytes:
            detail = f"a handover of {size:,} bytes; at most {max_bytes:,} fit into a commit"
            pending.refuse(delivery, BadEventError("too-large", detail))
            return []
        refusal = handover_refusal(delivery.body, self.number, auth.handovers) if delivery.session else None
        for event, body in events if refusal is None else ():
            try:
                check_origin(event, delivery, partitions)
                if delivery.session:
                    check_handed_over_clock(event, wall)
                slot = self._fold(event, room_bytes, pending, -math.inf)[1]
            except BadEventError as error:
                refusal = refusal or error
                continue
            if slot is None:
                continue
            taken.append((body, slot))
            if not delivery.session:
                self.unheard.discard(event.node)
            if self.queue_began and not self.complete and not self.records[slot].gone:
                self.unheard.add(event.node)  # a newer event of the node may have been lost with the queue
        if refusal is not None:
            pending.refuse(delivery, refusal)
        return taken

    def _fold(self, event: Event, room_bytes: int, pending: Pending, alive_at: float) -> tuple[FoldOutcome, int | None]:
        """Fold one event into the record of its node, and note the record that it replaces in ``pending``.

        ``alive_at`` is a time after which the node gave a sign of life.

        Returns the outcome and the node's slot. The slot is None if the record did not change. Raises ``BadEventError``
        if the event is invalid or the new state is too large; the record is then unchanged.
        """
        slot = self.slots.get(event.node)
        before = self.records[slot] if slot is not None else None
        try:
            record, outcome = fold(before, event)
        except CorruptItemError as error:  # as if the store had lost the node's state
            DAMAGE.report(f"node {event.node} in partition {self.number}", str(error))
            record, outcome = fold(unknown_node(event.node), event)
        if outcome is not FoldOutcome.DUPLICATE and slot is not None and alive_at > self.heard_at[slot]:
            pending.heard_again |= alive_at - self.heard_at[slot] > LONG_SILENCE_S
            self.heard_at[slot] = alive_at
        if record is before or record is None:
            return outcome, None
        _require_room(len(record.body) + len(record.classes) + len(record.columns), room_bytes, "a state")
        if slot is None:
            slot = self.slots[event.node] = len(self.records)
            self.records.append(record)
            self.heard_at.append(alive_at)
            pending.heard_again |= alive_at > -math.inf
        else:
            if before is not None and slot < pending.batch.size_before:
                pending.replaced.setdefault(slot, before)
            self.records[slot] = record
        if record.incomplete:
            self.incomplete.add(record.name)
        elif self.incomplete:
            self.incomplete.discard(record.name)
            self.resync_backoffs.pop(record.name, None)
        return outcome, slot


def _too_large(delivery: Delivery) -> BadEventError:
    return BadEventError(
        "too-large",
        f"a message of {delivery.cut_from:,} bytes; at most {MAX_EVENT_BYTES:,} are allowed",
    )


def _version_only(event: Event) -> Heartbeat:
    """Return a heartbeat that says only that the event's version of the node exists."""
    return Heartbeat(
        node=event.node, incarnation=event.incarnation, generation=event.generation, reported_at=event.reported_at
    )


def _require_room(size: int, room_bytes: int, what: str) -> None:
    """Raise ``BadEventError`` if ``size`` is over ``room_bytes``. ``what`` names the thing in the error's text."""
    if size > room_bytes:
        raise BadEventError(
            "too-large",
            f"{what} of {size:,} bytes does not fit an item of the store, which holds {room_bytes:,}: "
            "raise the item limit of memcached (-I)",
        )
