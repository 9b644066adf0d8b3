"""Following one partition of one design: what every design's reader shares.

What a follower knows of its partition::

    (nothing) --head and contents--> following --a new commit--> following
    following --contents missing--> lost (table kept as it was, and said to be so) --healed--> following
    following --another epoch--> (nothing)

Ages run on the reader's own clock. What a head says was said

- at most as long ago as memcached's time to live says (which the store's adapter counts from the sending);
- not before the last look that did not find the head that it follows: its owner said it after that one was stored.
  Not the last look that did not find the head itself: an owner may freeze between writing it down and storing it.

The later of the two counts. Both err on the old side, so a view may look older than it is but never fresher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from nodestate.errors import CorruptItemError
from nodestate.ports import Clock, Item, Key, Put, Write
from nodestate.store import keys
from nodestate.store.head import HEAD, Head, find_head
from nodestate.store.liveness import LIVENESS, NEVER_HEARD
from nodestate.store.round_trips import Step, Steps
from nodestate.view.table import Table

MAX_ROUNDS_COUNT = 3
"""How often a refresh looks again when contents were not where the head said: a commit may have overtaken it."""
REPAIR_TTL_S = 60
NO_HEAD = (
    "the store holds no head of it: no consumer has begun, the store lost it, or there is another number of partitions"
)


class Loaded(NamedTuple):
    """A table brought forward.

    ``missing``: a key without which the table can't be brought to the head's offset. ``unread``: a key of a
    node whose newest state can't be read; the table names such nodes as incomplete and is right otherwise.
    """

    table: Table | None
    missing: str = ""
    unread: str = ""


class DesignReader(Protocol):
    """One design's way of reading one partition."""

    def next_keys(self, head: Head, table: Table) -> Sequence[Key]:
        """What the next commit after ``table`` will be found under, if that can be told: asked for with the head, so that
        a reader that follows along needs one round trip.
        """

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:
        """Bring ``table`` (None: from nothing) to what ``head`` names, by as few fetches as can be; ``items`` came with
        the head.
        """


class PartitionState(NamedTuple):
    """What is known of one partition after a refresh; immutable, part of a view.

    ``confirmed_at``: the reader's monotonic time from which on the owner is known to have been caught up;
    minus infinity if never. ``lost``: why the table may lack what the position names. ``heard_at``: by slot, the
    reader's monotonic time of each node's last sign of life; None until it was asked for.
    """

    partition: int
    table: Table | None = None
    confirmed_at: float = -math.inf
    complete: bool = False
    lost: str = "never read"
    heard_at: np.ndarray | None = None


class Follower:
    """Reads one partition of one design, refresh by refresh."""

    def __init__(self, partition: int, prefix: str, reader: DesignReader, clock: Clock) -> None:
        self.state = PartitionState(partition)
        self._prefix = prefix
        self._reader = reader
        self._clock = clock
        self._looked_at = -math.inf  # the last look that found the head as it is
        self._before = -math.inf  # the last look that found another
        self._found_at = math.inf  # when the head was first found
        self._head: Head | None = None
        self._head_cas = 0
        self._again = ""
        self._left: dict[int, int] = {}  # how far epochs were when another came: a backup may bring one back

    def refresh(self, with_life: bool) -> Steps[PartitionState]:
        """Bring the state up to date; on a ``StoreUnavailableError`` it stays, and ages."""
        for attempt in range(1, MAX_ROUNDS_COUNT + 1):
            looked_at = self._clock.monotonic()
            known, held = self._head, self.state.table
            ahead = self._reader.next_keys(known, held) if known and held and held.epoch == known.epoch else ()
            try:
                found = yield from find_head(self._prefix, known.epoch if known else None, ahead)
                if found is None:
                    return self._lose(NO_HEAD)
                same = known is not None and (found.epoch, found.item.cas) == (known.epoch, self._head_cas)
                head = known if known is not None and same else HEAD.unpack(found.item.value)
            except CorruptItemError as error:
                return self._lose(str(error))
            if head.next < self._left.get(head.epoch, 0):
                return self._lose("the store went back to an earlier state")
            if same and not self._again:
                self._confirm(head, found.item, looked_at)
                break
            table = held if held and held.epoch == head.epoch else None
            loaded = yield from self._reader.load(head, table, found.others)
            self._again = loaded.missing or loaded.unread
            if held is not None and table is None and loaded.table is not None:
                self._left[held.epoch] = held.offset
            if loaded.missing:
                # What the table lacks is not confirmed by this head: the age goes on from where it was, within an epoch.
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
                yield Step(write=[Write(Put.ADD, keys.repair(self._prefix), self._again.encode(), 0, REPAIR_TTL_S)])
        if with_life:
            yield from self._hear()
        return self.state

    def _lose(self, why: str) -> PartitionState:
        self._head = None
        self.state = self.state._replace(lost=why)
        return self.state

    def _confirm(self, head: Head, item: Item, looked_at: float) -> None:
        # More than it was given to live: the database's clock was set back, and says nothing of this head's age.
        known = item.ttl_s is not None and item.ttl_s <= head.lease_s
        age_s = head.lease_s - item.ttl_s + 1 if known and item.ttl_s is not None else math.inf
        said_at = looked_at - age_s
        before = self._head
        if before is not None and (head.term, head.beat) < (before.term, before.beat):
            before = None  # a database was set back to what it was: this was not said after what is known
        if before is None or before.epoch != head.epoch:
            self._before, self._found_at = -math.inf, self._clock.monotonic()
        elif item.cas != self._head_cas:
            direct = head.follows in (before.beat, -1)
            said_at = max(said_at, self._before if direct else self._looked_at)
            self._before, self._found_at = self._looked_at, self._clock.monotonic()
        # A memcached that was frozen may for a moment count on from where it stopped.
        confirmed_at = min(said_at, self._found_at) - head.behind_ms / 1000
        if before is not None and before.epoch == head.epoch:
            confirmed_at = max(confirmed_at, self.state.confirmed_at)
        state = self.state
        self.state = PartitionState(
            state.partition, state.table, confirmed_at, state.complete, state.lost, state.heard_at
        )
        self._head, self._head_cas, self._looked_at = head, item.cas, looked_at

    def _hear(self) -> Steps[None]:
        head = self._head
        if head is None:
            return
        looked_at = self._clock.monotonic()
        key = keys.life(self._prefix, head.epoch)
        reply = yield Step(fetch=[key])
        item = reply.items.get(key)
        try:
            life = LIVENESS.unpack(item.value) if item else None
        except CorruptItemError:
            life = None
        size = self.state.table.size if self.state.table else 0
        heard_at = np.full(size, -math.inf)
        told = item is not None and item.ttl_s is not None and item.ttl_s <= head.lease_s  # more: a clock was set back
        if life is not None and told and item is not None and item.ttl_s is not None and life.term == head.term:
            ages_ms = np.frombuffer(life.ages_ms[: 4 * size], "<u4")
            written_at = looked_at - (head.lease_s - item.ttl_s + 1)
            known = np.where(ages_ms == NEVER_HEARD, -math.inf, written_at - ages_ms / 1000)
            heard_at[: len(known)] = known
        before = self.state.heard_at
        if before is not None and len(before):
            heard_at[: len(before)] = np.maximum(heard_at[: len(before)], before[:size])
        self.state = self.state._replace(heard_at=heard_at)
