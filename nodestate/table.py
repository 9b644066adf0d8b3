"""All nodes of one partition, by slot: an immutable table that shares what did not change with the one before.

A slot is a node's place in its partition, given in the order in which nodes first appear and kept for the
whole epoch. Records stand in chunks of fixed length; changing one copies its chunk and the list of chunks,
so a refresh costs what changed and an old view stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nodestate.model import NodeRecord

CHUNK_SLOTS: Final = 64

Chunk = tuple[NodeRecord, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """``slots`` is shared between the tables of an epoch and only ever grows: a name whose slot is not below
    ``size`` is not in this table. ``offset`` is the first commit that is not in it.
    """

    epoch: int
    offset: int
    size: int
    slots: dict[str, int]
    chunks: tuple[Chunk, ...]
    incomplete: frozenset[str] = frozenset()

    @classmethod
    def of(cls, epoch: int, offset: int, records: Sequence[NodeRecord]) -> Table:
        """A table of records in slot order."""
        chunks = tuple(tuple(records[at : at + CHUNK_SLOTS]) for at in range(0, len(records), CHUNK_SLOTS))
        slots = {record.name: slot for slot, record in enumerate(records)}
        incomplete = frozenset([record.name for record in records if record.incomplete])
        return cls(epoch, offset, len(records), slots, chunks, incomplete)

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
        return self.chunks[slot // CHUNK_SLOTS][slot % CHUNK_SLOTS]

    def records(self) -> Iterator[NodeRecord]:
        """All records in slot order, tombstones included."""
        for chunk in self.chunks:
            yield from chunk

    def advanced(self, offset: int, updates: Mapping[int, NodeRecord], unread: Iterable[str] = ()) -> Table:
        """The table after ``updates`` by slot. New slots must follow the last one without a hole.

        ``unread`` names nodes whose newest state could not be read: they count as incomplete until updated.
        """
        if unread:
            return replace(self, incomplete=self.incomplete.union(unread)).advanced(offset, updates)
        if not updates:
            return Table(self.epoch, offset, self.size, self.slots, self.chunks, self.incomplete)
        chunks, opened, size = list(self.chunks), dict[int, list[NodeRecord]](), self.size
        for slot in sorted(updates):
            number, place = divmod(slot, CHUNK_SLOTS)
            chunk = opened.get(number)
            if chunk is None:
                chunk = opened[number] = list(chunks[number]) if number < len(chunks) else []
            if slot < size:
                chunk[place] = updates[slot]
            else:
                assert slot == size, f"slot {slot} would leave a hole after {size}"
                chunk.append(updates[slot])
                self.slots[updates[slot].name] = slot
                size += 1
        for number, chunk in opened.items():
            if number < len(chunks):
                chunks[number] = tuple(chunk)
            else:
                chunks.append(tuple(chunk))
        incomplete = self.incomplete
        became = [record.name for record in updates.values() if record.incomplete]
        healed = [record.name for record in updates.values() if not record.incomplete] if incomplete else []
        if became or healed:
            incomplete = incomplete.difference(healed).union(became)
        return Table(self.epoch, offset, size, self.slots, tuple(chunks), incomplete)
