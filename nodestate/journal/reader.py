"""Reader of one partition's journal: folds the segments that it has not read yet, or starts at a checkpoint.

A view at offset n is exactly the fold of commits 0 to n-1 (invariant I2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from nodestate.errors import BadEventError, CorruptItemError
from nodestate.journal.format import JOURNAL_SECTION, SEGMENT, JournalSection, checkpoint_keys
from nodestate.model import NodeRecord, fold, parse_event
from nodestate.ports import Item, Key
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
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
        section = JOURNAL_SECTION.of(head)
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
        left = checkpoint_keys(self._prefix, head.epoch, section.checkpoint)
        rows: list[Row] = []
        names: list[str] = []
        incomplete: list[str] = []
        while parts := list(islice(left, MAX_FETCH_PARTS_COUNT)):
            reply = yield Step(fetch=parts, values_only=True)
            for key in parts:
                block = _block_of(key, reply.items.get(key))
                if block is None:
                    return Loaded(None, key)
                for name, is_incomplete, row in block:
                    names.append(name)
                    rows.append(row)
                    if is_incomplete:
                        incomplete.append(name)
        return Loaded(Table.of(head.epoch, section.checkpoint.offset, unpack_record, names, rows, incomplete))

    def _follow(self, head: Head, section: JournalSection, table: Table, items: Mapping[Key, Item]) -> Steps[Loaded]:
        while table.offset < head.next:
            until = min(head.next, table.offset + MAX_FETCH_SEGMENTS_COUNT)
            wanted = [
                keys.segment(self._prefix, head.epoch, term_of(section.terms, offset), offset)
                for offset in range(table.offset, until)
            ]
            if not all(key in items for key in wanted):
                items = (yield Step(fetch=wanted, values_only=True)).items
            table, missing = _fold_segments(table, wanted, items)
            if missing:
                return Loaded(table, missing)
        return Loaded(table)


def _fold_segments(table: Table, wanted: list[str], items: Mapping[Key, Item]) -> tuple[Table, str]:
    """The table after these segments, and the key of the first segment that is missing or corrupt."""
    rows: dict[int, NodeRecord] = {}
    fresh: dict[str, int] = {}
    offset, missing = table.offset, ""
    for key in wanted:
        segment = SEGMENT.find(key, items.get(key))
        if segment is None or not _fold_segment(key, segment, table, rows, fresh):
            missing = key
            break
        offset += 1
    incomplete = [record.name for record in rows.values() if record.incomplete]
    return table.advanced(offset, rows, list(fresh), incomplete), missing


def _fold_segment(
    key: str, segment: list[bytes], table: Table, rows: dict[int, NodeRecord], fresh: dict[str, int]
) -> bool:
    """Fold the events of one segment into ``rows``, and add the slots of new nodes to ``fresh``.

    Returns False, and changes nothing, if they are no events that can follow.
    """
    changed: dict[int, NodeRecord] = {}
    new: dict[str, int] = {}
    slots, size, held, decode = table.slots, table.size, table.rows, table.decode
    try:
        for raw in segment:
            event = parse_event(raw)
            name = event.node
            slot = slots.get(name, size)
            if slot >= size:
                slot = fresh[name] if name in fresh else new.setdefault(name, size + len(fresh) + len(new))
            before = changed.get(slot) or rows.get(slot)
            if before is None and slot < size:
                row = held[slot]
                before = decode(row) if isinstance(row, bytes) else row
            after = fold(before, event).record
            assert after is not None
            changed[slot] = after
    except (CorruptItemError, BadEventError) as error:
        DAMAGE.report(key, f"its events cannot follow the state before: {error}")
        return False
    rows.update(changed)
    fresh.update(new)
    return True


def _block_of(key: str, item: Item | None) -> list[tuple[str, bool, bytes]] | None:
    """The records of one part of a checkpoint; None if it is missing or damaged."""
    try:
        return unpack_block(item.value) if item is not None else None
    except CorruptItemError as error:
        DAMAGE.report(key, str(error))
        return None
