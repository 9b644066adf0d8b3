"""The follower of one partition of one design: the part that all designs' readers share.

The states of a follower::

    (nothing) --head and contents--> following --a new commit--> following
    following --contents missing--> lost (it keeps the table, and marks it as lost) --repaired--> following
    following --another epoch--> (nothing)

Ages run on the reader's own clock. There are two bounds for the time at which an owner made the statements of a head:

- It was at most as long ago as the time to live that is left says. The store's adapter counts that time from the
  sending.
- It was after the last refresh that did not yet find the head's predecessor (``Head.follows``), because the owner made
  the statements after that one was stored. The last refresh that did not find the head itself is no bound: an owner may
  freeze between packing the head and storing it.

The later of the two is used. Both err on the old side, so a view may look older than it is but never fresher.

Each write of a head raises (term, beat). So a head that a reader has seen before confirms nothing, whatever time to
live it has now: its statements were made before it was first found. The same is true of older heads of an epoch. A
reader remembers the newest head of each epoch for that, also while the store has no head.

A program that can write into memcached may store heads again that this reader has not seen, with any time to live, one
after the other. So a head never confirms a time after its own time of writing (``latest_write``), and a head of another
epoch is not followed if it was written before the newest head that was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from nodestate.errors import CorruptItemError
from nodestate.ports import Clock, Item, Key, Put, Store, Write
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.head import NEVER_HEARD, Head, find_head
from nodestate.store.liveness import LIVENESS, WRITE_TIME_TOLERANCE_S, latest_write
from nodestate.store.round_trips import Step, Steps
from nodestate.view.table import Table

MAX_ROUNDS_COUNT = 3
"""Tries of one refresh if contents are not where the head says: a commit may have overtaken the refresh."""
EPOCHS_OVERLAP_S = 2 * WRITE_TIME_TOLERANCE_S
"""An epoch whose head was written longer than this before a head of another epoch that was found earlier is a copy."""
REPAIR_TTL_S = 60
"""Time to live of a request for a repair, in seconds."""
NO_HEAD = (
    "the store has no head of it: no consumer has begun it, the store lost it, or the number of partitions is wrong"
)


class Loaded(NamedTuple):
    """The result of a load."""

    table: Table | None
    """The table at the head's offset or later; the old one, or None, if something is missing."""
    missing: str = ""
    """Name of an item without which the table cannot reach the head's offset; empty if nothing is missing."""
    unread: str = ""
    """Key of a node whose newest state cannot be read. The table marks such nodes as incomplete and is right otherwise.
    """


class DesignReader(Protocol):
    """The reader of one partition that a design provides."""

    def next_keys(self, head: Head, table: Table) -> Sequence[Key]:
        """The keys of the next commit after ``table``, if the design can tell them.

        They are fetched with the head, so a reader that is one commit behind needs one round trip.
        """

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:
        """Bring a table to the offset of a head, with as few fetches as possible.

        Args:
            head: the head to reach.
            table: the table of the same epoch to start from; None to load all nodes.
            items: the items of ``next_keys``, fetched with the head.

        Raises:
            CorruptItemError: if stored values contradict each other.
        """


def load_or_miss(
    reader: DesignReader, prefix: str, head: Head, table: Table | None, items: Mapping[Key, Item]
) -> Steps[Loaded]:
    """As ``reader.load``, but values that contradict each other count as missing, and are reported."""
    try:
        return (yield from reader.load(head, table, items))
    except CorruptItemError as error:
        DAMAGE.report(keys.head(prefix, head.epoch), str(error))
        return Loaded(table, f"an intact part of epoch {head.epoch:x}")


class PartitionState(NamedTuple):
    """The state of one partition after a refresh; immutable, part of a view."""

    partition: int
    table: Table | None = None
    """All nodes; None if none could be read."""
    confirmed_at: float = -math.inf
    """The latest time, by the reader's monotonic clock, at which the owner is known to have been caught up."""
    complete: bool = False
    """True if the owner knows all nodes of the partition."""
    lost: str = "never read"
    """Why the table may be incomplete at its position; empty if it is not."""
    heard_at: np.ndarray | None = None
    """By slot, the reader's monotonic time of the node's last sign of life; None until a read needs it."""


class Follower:
    """Reads one partition of one design, and refreshes its state."""

    def __init__(self, partition: int, prefix: str, reader: DesignReader, store: Store, clock: Clock) -> None:
        # The state after the last refresh.
        self.state = PartitionState(partition)
        # The first part of the keys of the partition and design.
        self.prefix = prefix
        # The design's reader, which loads tables.
        self._reader = reader
        # The store that the partition is read from; here it only tells its clock.
        self._store = store
        # The reader's own clock, for ages.
        self._clock = clock
        self._looked_at = -math.inf  # time of the last refresh that found the present head
        self._before = -math.inf  # time of the last refresh that found an earlier head of this epoch
        self._found_at = math.inf  # time at which the present head was first found
        self._written_by = math.inf  # the latest time at which the present head can have been written, as it says
        self._head: Head | None = None  # the present head; None if the last refresh found none
        self._head_cas = 0  # CAS id of the present head
        self._newest: Head | None = None  # the newest head of the present epoch; the present head unless that was lost
        self._again = ""  # name of an item that was missing or unread, so the next refresh loads again
        # By former epoch, its last offset, and the last term and beat: a backup may bring the epoch back.
        self._left: dict[int, tuple[int, int, int]] = {}

    def refresh(self, with_life: bool) -> Steps[PartitionState]:
        """Bring the state up to date, with signs of life if ``with_life``.

        After an error of the store the state stays, and ages.
        """
        for attempt in range(1, MAX_ROUNDS_COUNT + 1):
            looked_at = self._clock.monotonic()
            known, held = self._head, self.state.table
            ahead = self._reader.next_keys(known, held) if known and held and held.epoch == known.epoch else ()
            try:
                found = yield from find_head(self.prefix, known.epoch if known else None, ahead)
                if found is None:
                    return self._lose(NO_HEAD)
                same = known is not None and (found.epoch, found.item.cas) == (known.epoch, self._head_cas)
                head = known if known is not None and same else found.decoded()
            except CorruptItemError as error:
                DAMAGE.report(keys.epoch(self.prefix), str(error))
                return self._lose(str(error))
            if head.next < self._left.get(head.epoch, (0, 0, 0))[0] or self._went_back(head):
                yield Step(write=[Write(Put.ADD, keys.repair(self.prefix), b"head", 0, REPAIR_TTL_S)])
                return self._lose("the store went back to an earlier state")
            if same and not self._again:
                self._confirm(head, found.item, looked_at)
                break
            table = held if held and held.epoch == head.epoch else None
            loaded = yield from load_or_miss(self._reader, self.prefix, head, table, found.others)
            self._again = loaded.missing or loaded.unread
            if held is not None and table is None and loaded.table is not None:
                newest = self._newest if self._newest is not None and self._newest.epoch == held.epoch else None
                self._left[held.epoch] = held.offset, *((newest.term, newest.beat) if newest is not None else (0, 0))
            if loaded.missing:
                # The head does not confirm a table that lacks something, so the table's age continues within the epoch.
                lost = f"{loaded.missing} is missing"
                if loaded.table is not None and table is None:
                    self.state = PartitionState(self.state.partition, loaded.table, lost=lost)
                else:
                    self.state = self.state._replace(table=loaded.table or self.state.table, lost=lost)
            else:
                heard_at = self.state.heard_at if table is not None else None
                before, number = self.state.confirmed_at, self.state.partition
                self.state = PartitionState(number, loaded.table, before, head.vouched, "", heard_at)
                self._confirm(head, found.item, looked_at)
            if not self._again:
                break
            if attempt == MAX_ROUNDS_COUNT:
                yield Step(write=[Write(Put.ADD, keys.repair(self.prefix), self._again.encode(), 0, REPAIR_TTL_S)])
        if with_life:
            yield from self._read_liveness()
        return self.state

    def _lose(self, reason: str) -> PartitionState:
        self._head = None
        self.state = self.state._replace(lost=reason)
        return self.state

    def _went_back(self, head: Head) -> bool:
        """True if a newer head was found before, or if the head differs from one with the same epoch and beat."""
        newest = self._newest
        if newest is None or newest.epoch != head.epoch:
            if (head.term, head.beat) <= self._left.get(head.epoch, (0, 0, 0))[1:]:
                return True
            written_by = latest_write(head.written_ms, self._store, self._clock.monotonic())
            return written_by < self._written_by - EPOCHS_OVERLAP_S and self._written_by < math.inf
        if (head.term, head.beat) == (newest.term, newest.beat):
            return head is not newest and head != newest
        return (head.term, head.beat) < (newest.term, newest.beat)

    def _confirm(self, head: Head, item: Item, looked_at: float) -> None:
        # If more time is left than the lease, the database's clock was set back, and the head's age is unknown.
        known = item.ttl_s is not None and item.ttl_s <= head.lease_s
        age_s = head.lease_s - item.ttl_s + 1 if known and item.ttl_s is not None else math.inf
        said_at = looked_at - age_s
        before = self._newest
        same_epoch = before is not None and before.epoch == head.epoch
        if before is None or not same_epoch or (head.term, head.beat) != (before.term, before.beat):
            now = self._clock.monotonic()
            self._written_by = latest_write(head.written_ms, self._store, now)
            if before is not None and same_epoch:
                direct = head.follows in (before.beat, -1)
                said_at = max(said_at, self._before if direct else self._looked_at)
                self._before, self._found_at = self._looked_at, now
            else:
                self._before, self._found_at = -math.inf, now
        # After a freeze, memcached's clock may for a moment continue from where it stopped.
        behind_s = head.behind_ms / 1000 if head.behind_ms < NEVER_HEARD else math.inf
        confirmed_at = min(said_at, self._found_at, self._written_by) - behind_s
        if same_epoch:
            confirmed_at = max(confirmed_at, self.state.confirmed_at)
        state = self.state
        self.state = PartitionState(
            state.partition, state.table, confirmed_at, state.complete, state.lost, state.heard_at
        )
        self._head, self._head_cas, self._looked_at = head, item.cas, looked_at
        self._newest = head

    def _read_liveness(self) -> Steps[None]:
        head = self._head
        if head is None:
            return
        looked_at = self._clock.monotonic()
        key = keys.life(self.prefix, head.epoch)
        reply = yield Step(fetch=[key])
        item = reply.items.get(key)
        life = LIVENESS.find(key, item)
        size = self.state.table.size if self.state.table else 0
        heard_at = np.full(size, -math.inf)
        age_known = (
            item is not None and item.ttl_s is not None and item.ttl_s <= head.lease_s
        )  # more left than the lease: a clock was set back
        if life is not None and age_known and item is not None and item.ttl_s is not None and life.term == head.term:
            ages_ms = np.frombuffer(life.ages_ms[: 4 * size], "<u4")
            # They are written together with a head, so not later than the newest one was found.
            written_by = latest_write(life.written_ms, self._store, self._clock.monotonic())
            written_at = min(looked_at - (head.lease_s - item.ttl_s + 1), self._found_at, written_by)
            known = np.where(ages_ms == NEVER_HEARD, -math.inf, written_at - ages_ms / 1000)
            heard_at[: len(known)] = known
        before = self.state.heard_at
        if before is not None and len(before):
            heard_at[: len(before)] = np.maximum(heard_at[: len(before)], before[:size])
        self.state = self.state._replace(heard_at=heard_at)
