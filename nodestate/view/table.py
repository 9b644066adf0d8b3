"""All nodes of one partition, by slot: an immutable table that shares unchanged rows with the table before.

A slot is a node's number in its partition. Slots are given in the order in which nodes first appear, and stay the same
for the whole epoch. A refresh costs as much as the changed rows, and older views keep their tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.view.chunked_list import ChunkedList, Row


class Table(msgspec.Struct, frozen=True):
    """The nodes of one partition as of a commit."""

    epoch: int
    offset: int
    """The first commit that is not in the table."""
    size: int
    """Number of slots."""
    slots: dict[str, int]
    """By name, the slot. All tables of an epoch share it, and it only grows: slots from ``size`` on are not in this
    table.
    """
    names: list[str]
    """By slot, the name; shared in the same way."""
    rows: ChunkedList
    incomplete: frozenset[str]
    """Nodes of which a newer version is known to exist, or whose newest state could not be read."""
    decode: Callable[[bytes], NodeRecord]
    """Decodes a row in the form of the design that it was read from. Raises ``CorruptItemError``."""

    @classmethod
    def of(
        cls,
        epoch: int,
        offset: int,
        decode: Callable[[bytes], NodeRecord],
        names: Sequence[str] = (),
        rows: Sequence[Row] = (),
        incomplete: Collection[str] = (),
    ) -> Table:
        """A table of rows in slot order. Without rows: the empty table that others of an epoch are advanced from.

        Raises ``CorruptItemError`` if two rows are of one node.
        """
        slots = dict(zip(names, range(len(rows)), strict=True))
        if len(slots) != len(names):
            raise CorruptItemError("two records of one node in a partition")
        return cls(epoch, offset, len(rows), slots, list(names), ChunkedList.of(rows), frozenset(incomplete), decode)

    def get(self, name: str) -> NodeRecord | None:
        """The record of a node; None if the table does not have it."""
        slot = self.slots.get(name)
        if slot is None or slot >= self.size:
            return None
        record = self.at(slot)
        assert record.name == name, f"slot {slot} holds {record.name}, not {name}"
        return record

    def at(self, slot: int) -> NodeRecord:
        """The record in a slot."""
        return self.record(self.rows[slot])

    def record(self, row: Row) -> NodeRecord:
        """The record of a row, decoded if it is encoded."""
        return self.decode(row) if isinstance(row, bytes) else row

    def records(self) -> Iterator[NodeRecord]:
        """All records in slot order, tombstones included."""
        return map(self.record, self.rows)

    def advanced(
        self, offset: int, rows: Mapping[int, Row], appeared: Sequence[str] = (), incomplete: Collection[str] = ()
    ) -> Table:
        """The table after some commits.

        Args:
            offset: the first commit that is not in the new table.
            rows: by slot, the rows that changed or are new.
            appeared: names of the new slots, which follow the last one. Each must have a row.
            incomplete: the nodes that are incomplete in ``rows``, and the nodes whose newest state could not be read.
                They count as incomplete until they get another row.

        Raises ``CorruptItemError`` if a new slot is of a node that has a slot already.
        """
        size = self.size + len(appeared)
        changed = self.rows.changed(rows)
        assert changed.size == size, f"{changed.size - self.size} rows of {len(appeared)} new nodes"
        if appeared:
            if len(set(appeared)) != len(appeared) or any(self.slots.get(n, self.size) < self.size for n in appeared):
                raise CorruptItemError("two records of one node in a partition")
            del self.names[self.size :]  # names that a load added before it failed
            self.names.extend(appeared)
            self.slots.update(zip(appeared, range(self.size, size), strict=True))
        still = self.incomplete
        if still or incomplete:
            still = still.difference([name for name in still if self.slots[name] in rows]).union(incomplete)
        return Table(self.epoch, offset, size, self.slots, self.names, changed, still, self.decode)
