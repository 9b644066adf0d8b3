"""Reading one partition's journal: fold the tail that was not seen yet, or begin at a checkpoint.

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
"""Parts of a checkpoint asked for at a time: what they came as can go when they are decoded (docs/adr/0010)."""
MAX_FETCH_SEGMENTS_COUNT: Final = 32
"""Segments asked for at a time, for the same reason."""


class JournalReader:
    """Follows the journal of one partition. Holds nothing: all it knows is in the table it is given."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def next_keys(self, head: Head, table: Table) -> Sequence[Key]:
        """See ``DesignReader``. Where the next commit is written if its owner stays the same."""
        return (keys.segment(self._prefix, head.epoch, head.term, table.offset),)

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:
        """Bring ``table`` to the head's offset. What is missing ends the prefix there and is named in the answer."""
        section = JOURNAL_SECTION.decode(head.section)
        if table is not None and (table.epoch != head.epoch or table.offset < section.first):
            table = None
        if table is not None:
            loaded = yield from self._follow(head, section, table, items)
            if not loaded.missing or table.offset >= section.checkpoint.offset:
                return loaded
        # New here, trimmed away, or a hole that the newest checkpoint covers.
        anew = yield from self._at_checkpoint(head, section)
        if anew.table is None:
            return Loaded(table, anew.missing)
        following = self._follow(head, section, anew.table, {})
        del anew  # so that rows can go as later ones take their places
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
    """The table after these segments, and the key of the one that ended it because it is missing."""
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
