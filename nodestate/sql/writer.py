"""Writing one partition into the database: a commit's rows and its head in one transaction.

The head is moved by compare-and-swap, as in memcached, and takes its rows along or leaves them: an owner that lost
its partition changes neither (invariant I7), and no reader meets a commit that is half there.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from nodestate.errors import CorruptItemError, EpochLostError, StoreError
from nodestate.ports import NodeRow, Put, RowQuery, Write
from nodestate.sql.format import SqlSection
from nodestate.sql.reader import SqlReader
from nodestate.store import keys
from nodestate.store.head import Head, epoch_in
from nodestate.store.ownership import Ownership, OwnerStatus, PartitionTarget
from nodestate.store.partition_writer import Batch, HeldNodes, TakeoverResult
from nodestate.store.round_trips import Step, Steps

MAX_SILENT_S: Final = 60
"""A head that nobody renewed for longer may come from a backup: unlike memcached's contents, a database's survive whoever
wrote them, and may be set back while nobody owns them. What was acked after the backup is in no queue any more. So such
rows are a beginning and no claim: another epoch begins, and all agents are asked. The same goes for what was not vouched for
already, as it may be what a takeover that died half-way left of that.
"""


class SqlWriter:
    """Writes the rows of one partition."""

    def __init__(self, target: PartitionTarget) -> None:
        self._target = target
        self._ownership: Ownership | None = None
        self._began = 1  # the first commit of this ownership
        self._former: set[int] = set()  # epochs whose rows are to be removed
        self._lost: Head | None = None  # the last that is known to have been stored, of an epoch that is to be replaced

    @property
    def ownership(self) -> Ownership:
        """The ownership held. Only after ``take`` or ``begin``."""
        assert self._ownership is not None, "take or begin first"
        return self._ownership

    def take_over(self) -> Steps[TakeoverResult | None]:
        """See ``PartitionWriter``."""
        taken = yield from Ownership.take_over(self._target, MAX_SILENT_S)
        if taken is None:
            return None
        ownership, found = taken
        loaded = yield from SqlReader(self._target.prefix).load(found, None, {})
        if loaded.missing or loaded.table is None:
            return None
        try:
            records, sure = list(loaded.table.records()), ownership.head.vouched
        except CorruptItemError:
            return None
        self._ownership, self._began = ownership, found.next
        behind_ms = ownership.inherited_behind_ms if sure else None
        return TakeoverResult(records, sure, ownership.inherited_ages_ms, behind_ms, whole=sure)

    def begin_epoch(self, epoch: int, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``. Commit 0 of the new epoch is all rows; those of older epochs are removed."""
        self._lost = self._ownership.head if self._ownership is not None else self._lost
        yield from Ownership.replaced_epoch_cas(self._target, self._lost)
        pointer = keys.epoch(self._target.prefix)
        before = epoch_in((yield Step(fetch=[pointer])).items.get(pointer))
        self._ownership, self._began = None, 1
        rows = self._rows(range(len(nodes.records)), epoch, 0, nodes)
        section = SqlSection(len(nodes.records))
        self._ownership = yield from Ownership.begin_epoch(self._target, epoch, section, status, rows, self._lost)
        # Those that ours took the place of, and no others: somebody may have overtaken us since. Best effort, as nobody
        # reads them any more; and the epoch is begun, which must not be done twice.
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

    def repair(self, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:  # noqa: ARG002 - what others go by
        """See ``PartitionWriter``. A database that lacks what it had may have been set back, and readers may have seen what
        was written since under offsets that are given again: another epoch begins.
        """
        yield from self.ownership.require_still_owned()
        if self.ownership.head.beat <= 1:
            return  # asked for of the epoch before: this one was written whole a moment ago
        raise EpochLostError(self._target.partition, self.ownership.head.epoch)

    def _commit(self, slots: Iterable[int], nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        head = self.ownership.head
        rows = self._rows(slots, head.epoch, head.next, nodes)
        yield from self.ownership.advance(SqlSection(len(nodes.records), head.term, self._began), status, rows)

    def _rows(self, slots: Iterable[int], epoch: int, offset: int, nodes: HeldNodes) -> tuple[NodeRow, ...]:
        prefix = self._target.prefix
        return tuple(NodeRow(prefix, epoch, slot, offset, nodes.records[slot]) for slot in slots)
