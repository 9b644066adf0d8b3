"""One partition in its owner's hands: all its nodes as folded, when each was heard of, and what is under way."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec
import numpy as np

from nodestate.errors import BadEventError
from nodestate.model import Event, FoldOutcome, Heartbeat, NodeRecord, fold, parse_event
from nodestate.model.partitioning import partition_of
from nodestate.ports import ACTIVATION, Delivery
from nodestate.store.head import NEVER_HEARD, OwnerStatus
from nodestate.store.partition_writer import Batch, PartitionWriter

_encode = msgspec.msgpack.Encoder().encode

MAX_SEGMENT_BYTES = 512 * 1024
"""Events of one commit: above this a batch is split, so that a segment fits an item."""
MAX_CLOCK_AHEAD_S = 86_400.0
"""An event or incarnation from further ahead than this is refused: it would win over all later ones."""
MIN_CLOCK_S = 1_000_000_000.0
"""… and one from before 2001: a clock that was never set."""


@dataclass(slots=True)
class Counts:
    """What happened to events, since the start."""

    by_outcome: dict[str, int] = field(default_factory=lambda: {outcome.value: 0 for outcome in FoldOutcome})
    dead_letters: dict[str, int] = field(default_factory=dict)


def watermark_message(owner: str, now: float) -> bytes:
    """A message an owner sends to itself through its partition's queue. Queues keep order: when it comes back,
    all that was in the queue at ``now`` has come before it. Nothing else proves that as simply: an idle consumer
    can't tell an empty queue from a dead connection, nor from not being the active consumer.
    """
    return ACTIVATION + f"{owner} {now!r}".encode()


def is_marker(body: bytes) -> bool:
    """True for a watermark_message, and for the activation message by which a broker adapter shows who the active consumer is."""
    return body.startswith(ACTIVATION)


def watermark_of(body: bytes, owner: str) -> float:
    """When ``owner`` sent the watermark_message; minus infinity where it is not one of its own."""
    sender, _, at = body[len(ACTIVATION) :].decode(errors="replace").partition(" ")
    try:
        return float(at) if sender == owner else float("-inf")
    except ValueError:
        return float("-inf")


class ResyncBackoff(NamedTuple):
    """When an incomplete node is asked for a report again, and how long the pause before is."""

    again_at: float
    pause_s: float


@dataclass(slots=True)
class Pending:
    """Work between fold and ack. ``unconfirmed_designs`` are the designs that have not confirmed it yet; ``repair`` those of them
    that write again what the store lost, instead of the batch; ``bad`` are to be dead-lettered, and acked only then.
    """

    batch: Batch
    deliveries: list[Delivery]
    unconfirmed_designs: set[str]
    repair: frozenset[str] = frozenset()
    bad: list[tuple[Delivery, BadEventError]] = field(default_factory=list)
    caught_up_at: float = float("-inf")


class OwnedPartition:
    """The owner's state of one partition, ``taken_at`` a time. Times are the owner's monotonic clock.

    ``caught_up_at``: everything that was in the queue at this time is written. ``watermark_at``: when the last watermark_message
    that came back was sent, so that what comes now was sent later; a message may have waited for long, and its
    coming is no sign of life. ``complete_after``: what was in the queue then, and all before, makes the partition's nodes
    complete. ``refused``: to be dead-lettered, and not acked before. ``lost``: designs whose epoch the store lost; ``joining``: those
    that are to be written from now on, and are not there yet; ``leaving``: those that are not to be written any more, and are
    until others are there; ``wants_repair``: those a reader asked for.
    """

    def __init__(self, number: int, writers: dict[str, PartitionWriter], taken_at: float) -> None:
        self.number = number
        self.taken_at = taken_at
        self.writers = writers
        self.records: list[NodeRecord] = []
        self.slots: dict[str, int] = {}
        self.heard_at: list[float] = []
        self.backlog: deque[Delivery] = deque()
        self.pending: Pending | None = None
        self.caught_up_at = float("-inf")
        self.watermark_at = float("-inf")
        self.complete = False
        self.complete_after = float("inf")
        self.lost: set[str] = set()
        self.joining: set[str] = set()
        self.leaving: set[str] = set()
        self.wants_repair: set[str] = set()
        self.incomplete: set[str] = set()
        self.resync_backoffs: dict[str, ResyncBackoff] = {}
        self.refused: deque[tuple[Delivery, BadEventError]] = deque()
        self.needs_full_resync = False

    def fill(self, records: list[NodeRecord], ages_ms: bytes, now: float) -> None:
        """Start from what the stores had."""
        self.records = list(records)
        self.slots = {record.name: slot for slot, record in enumerate(records)}
        ages = np.frombuffer(ages_ms, "<u4").tolist()[: len(records)]
        self.heard_at = [now - age / 1000 if age != NEVER_HEARD else float("-inf") for age in ages]
        self.heard_at += [float("-inf")] * (len(records) - len(ages))
        self.incomplete = {record.name for record in records if record.incomplete}

    def drop(self, name: str) -> None:
        """Write a design no longer."""
        del self.writers[name]
        for names in (
            self.lost,
            self.joining,
            self.wants_repair,
            self.pending.unconfirmed_designs if self.pending else set(),
        ):
            names.discard(name)

    def mark_uncertain(self, now: float) -> None:
        """The store lost an epoch, and with it the term that tells who owns the partition: another may have taken it
        while we were frozen, and written what we never saw. Only a watermark_message sent from now on proves that nobody did.
        """
        self.complete, self.complete_after = False, max(self.complete_after, now)

    def vitals(self, now: float) -> OwnerStatus:
        """What the owner says of itself as it writes: with the pending work written, the partition is as far as
        the last watermark_message in it. Without signs of life, which are renewal's.
        """
        caught_up_at = max(self.caught_up_at, self.pending.caught_up_at) if self.pending else self.caught_up_at
        behind_ms = min(max(0.0, now - caught_up_at) * 1000, float(NEVER_HEARD))
        return OwnerStatus(math.ceil(behind_ms), self.complete, said_at=now)

    def full_vitals(self, now: float) -> OwnerStatus:
        """What the owner says of itself with a renewal."""
        ages = np.minimum((now - np.array(self.heard_at, "f8")) * 1000, float(NEVER_HEARD))
        return replace(self.vitals(now), ages_ms=np.ceil(ages).astype("<u4").tobytes())

    def maintenance(self, unconfirmed_designs: set[str], repair: frozenset[str] = frozenset()) -> Pending:
        """Work without events: an epoch to begin anew, or a repair."""
        return Pending(Batch((), (), len(self.records)), [], set(unconfirmed_designs), repair)

    def take_batch(self, wall: float, partitions: int, room_bytes: int, owner: str, counts: Counts) -> Pending:
        """Fold the backlog, up to what one commit can hold: ``room_bytes`` fit an item of the store."""
        size_before = len(self.records)
        events: list[bytes] = []
        changed: dict[int, None] = {}
        pending = Pending(Batch((), (), size_before), [], set())
        most_bytes, size = min(MAX_SEGMENT_BYTES, room_bytes), 0
        while self.backlog and (not size or size + len(self.backlog[0].body) <= most_bytes):
            delivery = self.backlog.popleft()
            pending.deliveries.append(delivery)
            if is_marker(delivery.body):
                self.watermark_at = max(self.watermark_at, watermark_of(delivery.body, owner))
                pending.caught_up_at = self.watermark_at
                continue
            body = delivery.body
            try:
                event = parse_event(body)
                self._check_place(event, partitions)
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
                if error.reason == "clock" and not self._knows_life(event):
                    continue  # an absurd incarnation must win over nothing
                # What it says can't be kept, but that it was said: the state before must not pass for the newest. (Nor
                # if it is this machine's clock that is wrong, and all others' look absurd.)
                said = _version_alone(event)
                body = _encode(said)
                try:
                    _, slot = self._fold(said, room_bytes)
                except BadEventError:  # not even that: what is held of the node is over the limit by itself
                    self.incomplete.add(event.node)
                    continue
            if slot is not None:
                events.append(body)
                changed[slot] = None
                size += len(body) + 5  # msgpack's header of a bin
        for _, refused in pending.bad:
            counts.dead_letters[refused.reason] = counts.dead_letters.get(refused.reason, 0) + 1
        if events:
            pending.batch = Batch(tuple(events), tuple(changed), size_before)
            pending.unconfirmed_designs = self.writers.keys() - self.joining
        return pending

    def _check_place(self, event: Event, partitions: int) -> None:
        if partition_of(event.node, partitions) != self.number:
            raise BadEventError(
                "wrong-partition",
                f"{event.node} belongs to partition {partition_of(event.node, partitions)} of {partitions}, not to "
                f"{self.number}: does its publisher count buckets otherwise?",
            )

    def _knows_life(self, event: Event) -> bool:
        slot = self.slots.get(event.node)
        return slot is not None and self.records[slot].incarnation == event.incarnation

    def _fold(self, event: Event, room_bytes: int) -> tuple[FoldOutcome, int | None]:
        """Fold one event in; the slot is None where it changed nothing."""
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
            raise BadEventError("clock", f"{what} {seconds} is absurdly far from now ({wall:.0f})")


def _version_alone(event: Event) -> Heartbeat:
    return Heartbeat(
        node=event.node, incarnation=event.incarnation, generation=event.generation, reported_at=event.reported_at
    )


def _require_room(size: int, room_bytes: int, what: str) -> None:
    if size > room_bytes:
        raise BadEventError(
            "too-large", f"{what} of {size:,} bytes does not fit the store's items ({room_bytes:,}): raise its -I"
        )
