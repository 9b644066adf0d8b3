"""All nodes of one partition, by slot: an immutable table that shares what did not change with the one before.

A slot is a node's place in its partition, given in the order in which nodes first appear and kept for the
whole epoch. A refresh costs what changed, and an old view stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nodestate.model import NodeRecord
from nodestate.view.chunked_list import Row, Rows


@dataclass(frozen=True, slots=True)
class Table:
    """``slots`` and ``names`` are shared between the tables of an epoch and only ever grow: a name whose slot is not
    below ``size`` is not in this table. ``offset`` is the first commit that is not in it. ``decode`` makes a record
    of a row in the form of the design that the table was read from; it raises ``CorruptItemError``.
    """

    epoch: int
    offset: int
    size: int
    slots: dict[str, int]
    names: list[str]
    rows: Rows
    incomplete: frozenset[str]
    decode: Callable[[bytes], NodeRecord]

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
        """A table of rows in slot order; by default the empty one that every other of an epoch is advanced from."""
        slots = dict(zip(names, range(len(rows)), strict=True))
        return cls(epoch, offset, len(rows), slots, list(names), Rows.of(rows), frozenset(incomplete), decode)

    def get(self, name: str) -> NodeRecord | None:
        """The record of a node, or None where it is not known here."""
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
        """The record that a row of this table is."""
        return self.decode(row) if isinstance(row, bytes) else row

    def records(self) -> Iterator[NodeRecord]:
        """All records in slot order, tombstones included."""
        return map(self.record, self.rows)

    def advanced(
        self, offset: int, rows: Mapping[int, Row], appeared: Sequence[str] = (), incomplete: Collection[str] = ()
    ) -> Table:
        """The table after ``rows`` by slot.

        ``appeared`` are the names of new slots, which follow the last one: each needs its row. ``incomplete`` names the
        nodes that are so in these rows, and those whose newest state could not be read: they count as incomplete
        until they have another row.
        """
        size = self.size + len(appeared)
        changed = self.rows.changed(rows)
        assert changed.size == size, f"{changed.size - self.size} rows of {len(appeared)} new nodes"
        if appeared:
            del self.names[self.size :]  # of a load that did not come to its end
            self.names.extend(appeared)
            self.slots.update(zip(appeared, range(self.size, size), strict=True))
        still = self.incomplete
        if still or incomplete:
            still = still.difference([name for name in still if self.slots[name] in rows]).union(incomplete)
        return Table(self.epoch, offset, size, self.slots, self.names, changed, still, self.decode)
