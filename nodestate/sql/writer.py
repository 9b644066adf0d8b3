"""Writer of one partition in the database: the rows of a commit and its head, in one transaction.

The head is changed by compare-and-swap, as in memcached. If the CAS fails, the transaction stores no rows either. So an
owner that lost its partition changes neither (invariant I7), and readers never see part of a commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from nodestate.errors import EpochLostError, StoreError
from nodestate.ports import NodeRow, Put, RowQuery, Write
from nodestate.sql.format import SQL_SECTION, SqlSection
from nodestate.sql.reader import SqlReader
from nodestate.store import keys
from nodestate.store.head import EPOCH, Head
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.ownership import Ownership, PartitionTarget
from nodestate.store.partition_writer import Batch, HeldNodes, TakeoverResult
from nodestate.store.round_trips import Step, Steps
from nodestate.view.follower import load_or_miss

MAX_SILENT_S: Final = 60
"""A head that was not renewed for longer than this may come from a backup.

The contents of a database, unlike those of memcached, outlive their writers, and may be set back while they have no
owner. Events that were acknowledged after the backup are in no queue. So the rows are used, but as incomplete: another
epoch begins, and all agents are asked for reports. The same applies to rows whose owner was not complete: they may be
left from a takeover of a backup that was interrupted.
"""


class SqlWriter:
    """Writes the rows of one partition."""

    def __init__(self, target: PartitionTarget) -> None:
        # The partition that it writes.
        self._target = target
        # Set by ``take_over`` and ``begin_epoch``.
        self._ownership: Ownership | None = None
        # The first commit of the ownership.
        self._began = 1
        # Former epochs whose rows are to be removed.
        self._former: set[int] = set()
        # The last head that is known to have been stored in the epoch that is replaced; None if there is none.
        self._lost: Head | None = None

    @property
    def ownership(self) -> Ownership:
        """The present ownership. Valid after ``take_over`` or ``begin_epoch``."""
        assert self._ownership is not None, "call take_over or begin_epoch first"
        return self._ownership

    @property
    def copies(self) -> int:
        """See ``PartitionWriter``."""
        return self.ownership.head.copies

    def take_over(self) -> Steps[TakeoverResult | None]:
        """See ``PartitionWriter``."""
        taken = yield from Ownership.take_over(self._target, MAX_SILENT_S, SQL_SECTION)
        if taken is None:
            return None
        ownership, found = taken
        loaded = yield from load_or_miss(SqlReader(self._target.prefix), self._target.prefix, found, None, {})
        if loaded.missing or loaded.table is None:
            return None
        records, sure = list(loaded.table.records()), ownership.head.vouched
        self._ownership, self._began = ownership, found.next
        behind_ms = ownership.inherited_behind_ms if sure else None
        return TakeoverResult(records, sure, ownership.inherited_ages_ms, behind_ms, epoch_continues=sure)

    def begin_epoch(self, epoch: int, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``. Commit 0 of the new epoch is all rows; rows of former epochs are removed."""
        self._lost = self._ownership.head if self._ownership is not None else self._lost
        yield from Ownership.replaced_epoch_cas(self._target, self._lost, SQL_SECTION)
        pointer = keys.epoch(self._target.prefix)
        before = EPOCH.find(pointer, (yield Step(fetch=[pointer])).items.get(pointer))
        self._ownership, self._began = None, 1
        rows = self._rows(range(len(nodes.records)), epoch, 0, nodes)
        section = SqlSection(len(nodes.records))
        self._ownership = yield from Ownership.begin_epoch(
            self._target, epoch, section, status, rows, self._lost, SQL_SECTION
        )
        # Remove the rows of the epochs that this one replaced, and of no others: another owner may have begun an epoch
        # since. Errors are ignored, as readers do not use these rows, and the new epoch, which has begun, must not
        # begin twice.
        self._former |= {before} if before is not None else set()
        with suppress(StoreError):
            queries = [RowQuery.of_epoch(self._target.prefix, one) for one in sorted(self._former)]
            yield Step(write=[Write(Put.DELETE_ROWS, query=query) for query in queries])
            self._former.clear()

    def commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``."""
        yield from self._commit(batch.changed, nodes, status)

    def renew(self, status: OwnerStatus) -> Steps[bool]:
        """See ``PartitionWriter``."""
        return (yield from self.ownership.renew(status))

    def repair(self, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:  # noqa: ARG002 - other designs use them
        """See ``PartitionWriter``. Raises ``EpochLostError``, so that another epoch begins.

        A database that lacks rows may have been set back to a backup. Readers may have seen the commits since then,
        whose offsets would be used again.
        """
        yield from self.ownership.require_still_owned()
        if self.ownership.head.beat <= 1:
            return  # the request concerns the former epoch: all of this one was written a moment ago
        raise EpochLostError(self._target.partition, self.ownership.head.epoch)

    def _commit(self, slots: Iterable[int], nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        head = self.ownership.head
        rows = self._rows(slots, head.epoch, head.next, nodes)
        yield from self.ownership.advance(SqlSection(len(nodes.records), head.term, self._began), status, rows)

    def _rows(self, slots: Iterable[int], epoch: int, offset: int, nodes: HeldNodes) -> tuple[NodeRow, ...]:
        prefix = self._target.prefix
        return tuple(NodeRow(prefix, epoch, slot, offset, nodes.records[slot]) for slot in slots)
