"""An immutable list with cheap changed copies: a copy shares with its original all that did not change.

The list holds groups of chunks of rows. Replacing k of n rows copies k chunks, at most k groups, and the list of n /
1,024 groups. For a million nodes in eight partitions that list has about a hundred pointers per partition. A plain list
of chunks would have thousands of pointers to copy, most of them outside of the processor's cache (docs/adr/0013).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self

from nodestate.model import NodeRecord

CHUNK_SLOTS: Final = 32
GROUP_CHUNKS: Final = 32
GROUP_SLOTS: Final = GROUP_CHUNKS * CHUNK_SLOTS

Row = NodeRecord | bytes
"""A node: its record, or the bytes from the store, which stay encoded until the record is needed."""
Chunk = list[Row]
Group = list[Chunk]


class ChunkedList:
    """Rows by slot, from slot 0 on without a hole."""

    __slots__ = ("groups", "size")

    def __init__(self, groups: list[Group], size: int) -> None:
        # The rows. Neither this list nor the lists in it are changed after this constructor.
        self.groups = groups
        # Number of rows.
        self.size = size

    @classmethod
    def of(cls, rows: Sequence[Row] = ()) -> Self:
        """A list of these rows."""
        chunks = [list(rows[at : at + CHUNK_SLOTS]) for at in range(0, len(rows), CHUNK_SLOTS)]
        return cls([chunks[at : at + GROUP_CHUNKS] for at in range(0, len(chunks), GROUP_CHUNKS)], len(rows))

    def __getitem__(self, slot: int) -> Row:
        return self.groups[slot // GROUP_SLOTS][slot % GROUP_SLOTS // CHUNK_SLOTS][slot % CHUNK_SLOTS]

    def __iter__(self) -> Iterator[Row]:
        for group in self.groups:
            for chunk in group:
                yield from chunk

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkedList) and self.groups == other.groups

    __hash__ = None  # type: ignore[assignment]  # equal by content, and large

    def changed(self, rows: Mapping[int, Row]) -> Self:
        """A copy with these rows in their slots. Slots after the end must continue it without a hole."""
        before = self.groups
        groups, size = before.copy(), self.size
        old, new = rows, []
        if max(rows, default=-1) >= size:
            new = sorted(slot for slot in rows if slot >= size)
            assert new == list(range(size, size + len(new))), f"{new[:3]} leave a hole after {size}"
            old = {slot: row for slot, row in rows.items() if slot < size}
        copies: dict[int, Chunk] = {}  # by number of the chunk; each refresh spends much time in this loop
        for slot, row in old.items():
            number = slot // CHUNK_SLOTS
            chunk = copies.get(number)
            if chunk is None:
                group_number, at = number // GROUP_CHUNKS, number % GROUP_CHUNKS
                group = groups[group_number]
                if group is before[group_number]:
                    group = groups[group_number] = group.copy()
                chunk = group[at] = copies[number] = group[at].copy()
            chunk[slot % CHUNK_SLOTS] = row
        if new:  # rebuild the last group and append the new rows
            full = size // GROUP_SLOTS
            last = [row for group in groups[full:] for chunk in group for row in chunk]
            groups[full:] = type(self).of([*last, *(rows[slot] for slot in new)]).groups
        return type(self)(groups, size + len(new))

    def differing(self, before: ChunkedList | None) -> Iterator[tuple[int, Row]]:
        """The slots and rows whose object is not the same one as in ``before``."""
        old_groups = before.groups if before is not None else []
        for number, group in enumerate(self.groups):
            old_group = old_groups[number] if number < len(old_groups) else []
            if group is old_group:
                continue
            for chunk_number, chunk in enumerate(group):
                old = old_group[chunk_number] if chunk_number < len(old_group) else []
                if chunk is old:
                    continue
                begin = number * GROUP_SLOTS + chunk_number * CHUNK_SLOTS
                for slot, row in enumerate(chunk, begin):
                    if slot - begin >= len(old) or old[slot - begin] is not row:
                        yield slot, row
