"""All nodes of one partition, by slot: an immutable table that shares what did not change with the one before.

A slot is a node's place in its partition, given in the order in which nodes first appear and kept for the
whole epoch. A row is what is held of the node in a slot: a record, or the bytes that the store gave, which stay
as they are until somebody looks (docs/adr/0013). Rows stand in chunks of fixed length; changing one copies its
chunk and the list of chunks, so a refresh costs what changed and an old view stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nodestate.model import NodeRecord

CHUNK_SLOTS: Final = 64

Row = NodeRecord | bytes
Chunk = list[Row]
"""Never changed once a table has it."""


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
    chunks: tuple[Chunk, ...]
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
        table = cls(epoch, offset, len(rows), {}, [], (), frozenset(incomplete), decode)
        return replace(table, chunks=tuple(table._appended([], 0, names, rows)))

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
        return self.record(self.chunks[slot // CHUNK_SLOTS][slot % CHUNK_SLOTS])

    def record(self, row: Row) -> NodeRecord:
        """The record that a row of this table is."""
        return self.decode(row) if isinstance(row, bytes) else row

    def records(self) -> Iterator[NodeRecord]:
        """All records in slot order, tombstones included."""
        for chunk in self.chunks:
            yield from map(self.record, chunk)

    def advanced(
        self, offset: int, rows: Mapping[int, Row], appeared: Sequence[str] = (), incomplete: Collection[str] = ()
    ) -> Table:
        """The table after ``rows`` by slot.

        ``appeared`` are the names of new slots, which follow the last one: each needs its row. ``incomplete`` names the
        nodes that are so in these rows, and those whose newest state could not be read: they count as incomplete
        until they have another row.
        """
        chunks, before, size = list(self.chunks), self.chunks, self.size
        grown = size + len(appeared)
        for slot, row in rows.items():
            if slot < size:
                number, place = divmod(slot, CHUNK_SLOTS)
                chunk = chunks[number]
                if chunk is before[number]:
                    chunk = chunks[number] = chunk.copy()
                chunk[place] = row
            else:
                assert slot < grown, f"slot {slot} has no name: the last one of these rows is {grown - 1}"
        if appeared:
            chunks = self._appended(chunks, size, appeared, [rows[slot] for slot in range(size, grown)])
        still = self.incomplete
        if still or incomplete:
            still = still.difference([name for name in still if self.slots[name] in rows]).union(incomplete)
        return Table(self.epoch, offset, grown, self.slots, self.names, tuple(chunks), still, self.decode)

    def _appended(self, chunks: list[Chunk], size: int, appeared: Sequence[str], new: Sequence[Row]) -> list[Chunk]:
        del self.names[size:]  # of a load that did not come to its end
        self.names.extend(appeared)
        self.slots.update(zip(appeared, range(size, size + len(appeared)), strict=True))
        if room := -size % CHUNK_SLOTS:
            chunks[-1] = [*chunks[-1], *new[:room]]
        chunks += [list(new[at : at + CHUNK_SLOTS]) for at in range(room, len(new), CHUNK_SLOTS)]
        return chunks
