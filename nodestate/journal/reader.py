"""Reader of one partition's journal: folds the segments that it has not read yet, or starts at a checkpoint.

A view at offset n is exactly the fold of commits 0 to n-1 (invariant I2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nodestate.errors import BadEventError, CorruptItemError
from nodestate.journal.format import JOURNAL_SECTION, SEGMENT, JournalSection, checkpoint_keys
from nodestate.model import NodeRecord, fold, parse_event
from nodestate.ports import Item, Key
from nodestate.store import keys
from nodestate.store.head import Head, term_of
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import unpack_block, unpack_record
from nodestate.view.chunked_list import Row
from nodestate.view.follower import Loaded
from nodestate.view.table import Table

MAX_FETCH_PARTS_COUNT: Final = 8
"""Parts of a checkpoint that one fetch asks for. Their bytes can be freed once they are decoded (docs/adr/0010)."""
MAX_FETCH_SEGMENTS_COUNT: Final = 32
"""Segments that one fetch asks for, for the same reason."""


class JournalReader:
    """Follows the journal of one partition. It has no state of its own; all of it is in the table."""

    def __init__(self, prefix: str) -> None:
        # The partition and design.
        self._prefix = prefix

    def next_keys(self, head: Head, table: Table) -> Sequence[Key]:
        """See ``DesignReader``. The key of the next commit, if the owner stays the same."""
        return (keys.segment(self._prefix, head.epoch, head.term, table.offset),)

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:
        """See ``DesignReader``. If a segment is missing, the table ends before it, and the answer names its key."""
        section = JOURNAL_SECTION.decode(head.section)
        if table is not None and (table.epoch != head.epoch or table.offset < section.first):
            table = None
        if table is not None:
            loaded = yield from self._follow(head, section, table, items)
            if not loaded.missing or table.offset >= section.checkpoint.offset:
                return loaded
        # A new reader, or segments that were trimmed or lost and that the newest checkpoint covers.
        from_checkpoint = yield from self._at_checkpoint(head, section)
        if from_checkpoint.table is None:
            return Loaded(table, from_checkpoint.missing)
        following = self._follow(head, section, from_checkpoint.table, {})
        del from_checkpoint  # so that rows which later segments replace can be freed
        return (yield from following)

    def _at_checkpoint(self, head: Head, section: JournalSection) -> Steps[Loaded]:
        parts = checkpoint_keys(self._prefix, head.epoch, section.checkpoint)
        rows: list[Row] = []
        names: list[str] = []
        incomplete: list[str] = []
        for at in range(0, len(parts), MAX_FETCH_PARTS_COUNT):
            reply = yield Step(fetch=parts[at : at + MAX_FETCH_PARTS_COUNT])
            for key in parts[at : at + MAX_FETCH_PARTS_COUNT]:
                try:
                    block = unpack_block(reply.items[key].value)
                except (KeyError, CorruptItemError):
                    return Loaded(None, key)
                for heading, row in block:
                    names.append(heading.name)
                    rows.append(row)
                    if heading.incomplete:
                        incomplete.append(heading.name)
        return Loaded(Table.of(head.epoch, section.checkpoint.offset, unpack_record, names, rows, incomplete))

    def _follow(self, head: Head, section: JournalSection, table: Table, items: Mapping[Key, Item]) -> Steps[Loaded]:
        while table.offset < head.next:
            until = min(head.next, table.offset + MAX_FETCH_SEGMENTS_COUNT)
            wanted = [
                keys.segment(self._prefix, head.epoch, term_of(section.terms, offset), offset)
                for offset in range(table.offset, until)
            ]
            if not all(key in items for key in wanted):
                items = (yield Step(fetch=wanted)).items
            table, missing = _fold_segments(table, wanted, items)
            if missing:
                return Loaded(table, missing)
        return Loaded(table)


def _fold_segments(table: Table, wanted: list[str], items: Mapping[Key, Item]) -> tuple[Table, str]:
    """The table after these segments, and the key of the first segment that is missing or corrupt."""
    rows: dict[int, NodeRecord] = {}
    size, offset, missing = table.size, table.offset, ""
    slots = table.slots
    fresh: dict[str, int] = {}
    for key in wanted:
        try:
            events = [parse_event(raw) for raw in SEGMENT.unpack(items[key].value)]
        except (KeyError, CorruptItemError, BadEventError):
            missing = key
            break
        for event in events:
            slot = slots.get(event.node)
            if slot is None or slot >= size:
                slot = fresh.setdefault(event.node, size + len(fresh))
                before = rows.get(slot)
            else:
                before = rows.get(slot) or table.at(slot)
            folded = fold(before, event)
            assert folded.record is not None
            rows[slot] = folded.record
        offset += 1
    incomplete = [record.name for record in rows.values() if record.incomplete]
    return table.advanced(offset, rows, list(fresh), incomplete), missing
