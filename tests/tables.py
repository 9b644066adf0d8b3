"""Tables for tests, created as a design's reader creates them."""

from __future__ import annotations

from collections.abc import Sequence

from nodestate.model import NodeRecord
from nodestate.store.wire import pack_records, unpack_block, unpack_record
from nodestate.view.chunked_list import Row
from nodestate.view.table import Table

PART_BYTES = 60_000


def encoded(record: NodeRecord) -> bytes:
    """A record as a row that was not decoded."""
    [block] = pack_records([record], PART_BYTES)
    [(_, _, row)] = unpack_block(block)
    return row


def advanced(table: Table, offset: int, records: dict[int, NodeRecord], lost: Sequence[str] = ()) -> Table:
    """The table after these records by slot, every other one of them encoded."""
    rows: dict[int, Row] = {slot: encoded(one) if slot % 2 else one for slot, one in records.items()}
    new = [records[slot].name for slot in sorted(records) if slot >= table.size]
    return table.advanced(offset, rows, new, [*lost, *(one.name for one in records.values() if one.incomplete)])


def table_of(epoch: int, offset: int, records: Sequence[NodeRecord]) -> Table:
    """A table of records in slot order."""
    return advanced(Table.of(epoch, offset, unpack_record), offset, dict(enumerate(records)))
