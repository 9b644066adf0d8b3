"""Reading one partition's journal: fold the tail that was not seen yet, or begin at a checkpoint.

A view at offset n is exactly the fold of commits 0 to n-1 (invariant I2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nodestate import keys
from nodestate.errors import BadEventError, CorruptItemError
from nodestate.head import Head, term_of
from nodestate.journal.format import SECTION, SEGMENT, Section, checkpoint_keys
from nodestate.lockstep import Step, Steps
from nodestate.model import NodeRecord, fold, parse_event
from nodestate.ports import Item
from nodestate.reading import Loaded
from nodestate.table import Table
from nodestate.wire import unpack_records

MAX_FETCH_PARTS_COUNT: Final = 8
"""Parts of a checkpoint asked for at a time: what they came as can go when they are decoded (docs/adr/0010)."""


class JournalReader:
    """Follows the journal of one partition. Holds nothing: all it knows is in the table it is given."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def load(self, head: Head, table: Table | None) -> Steps[Loaded]:
        """Bring ``table`` to the head's offset. What is missing ends the prefix there and is named in the answer."""
        section = SECTION.decode(head.section)
        if table is not None and (table.epoch != head.epoch or table.offset < section.first):
            table = None
        if table is not None:
            loaded = yield from self._follow(head, section, table)
            if not loaded.missing or table.offset >= section.checkpoint.offset:
                return loaded
        # New here, trimmed away, or a hole that the newest checkpoint covers.
        parts = checkpoint_keys(self._prefix, head.epoch, section.checkpoint)
        records: list[NodeRecord] = []
        for at in range(0, len(parts), MAX_FETCH_PARTS_COUNT):
            reply = yield Step(fetch=parts[at : at + MAX_FETCH_PARTS_COUNT])
            for key in parts[at : at + MAX_FETCH_PARTS_COUNT]:
                try:
                    records += unpack_records(reply.items[key].value)
                except (KeyError, CorruptItemError):
                    return Loaded(table, key)
        return (yield from self._follow(head, section, Table.of(head.epoch, section.checkpoint.offset, records)))

    def _follow(self, head: Head, section: Section, table: Table) -> Steps[Loaded]:
        if table.offset == head.next:
            return Loaded(table)
        wanted = [
            keys.segment(self._prefix, head.epoch, term_of(section.terms, offset), offset)
            for offset in range(table.offset, head.next)
        ]
        reply = yield Step(fetch=wanted)
        return _fold_segments(table, wanted, reply.items)


def _fold_segments(table: Table, wanted: list[str], items: Mapping[str, Item]) -> Loaded:
    updates: dict[int, NodeRecord] = {}
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
            if slot is None or slot >= table.size:
                slot = fresh.get(event.node)
            if slot is None:
                slot = fresh[event.node] = size
                size += 1
                before = None
            else:
                before = updates.get(slot) or (table.at(slot) if slot < table.size else None)
            folded = fold(before, event)
            assert folded.record is not None
            updates[slot] = folded.record
        offset += 1
    return Loaded(table.advanced(offset, updates), missing)
