"""Reader of one partition in the database: reads the rows of the commits since the last refresh.

A view at offset n has every row as of commit n - 1 or later (invariant I3): rows are read after the head, so they may
be of later commits. The reader must also notice if they are older than the head. Each commit writes at least one row.
So the latest commit among the rows is the head's last commit or a later one, unless the rows do not belong to the head:
another owner began a new epoch and removed them, or the database was set back to a backup, between the two queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nodestate.errors import CorruptItemError
from nodestate.ports import Item, Key, RowQuery
from nodestate.sql.format import SQL_SECTION
from nodestate.store.damage import DAMAGE
from nodestate.store.head import Head
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import FoundRows, are_names, unpack_found_rows, unpack_record
from nodestate.view.chunked_list import Row
from nodestate.view.follower import Loaded
from nodestate.view.table import Table

MAX_FETCH_ROWS_COUNT: Final = 2_000
"""Rows of a partition that one query of a first load asks for. Its reply can be freed before the next query."""


class _DamagedRowError(CorruptItemError):
    """Raised within this module if a row is damaged."""

    def __init__(self, slot: int, reason: str) -> None:
        super().__init__(reason)
        # The number of the row.
        self.slot = slot


class SqlReader:
    """Follows the rows of one partition."""

    def __init__(self, prefix: str) -> None:
        # The partition and design.
        self._prefix = prefix
        # Term and first commit of the ownership that wrote the state in the table.
        self._ownership = (0, 0)

    def next_keys(self, head: Head, table: Table) -> Sequence[Key]:
        """See ``DesignReader``. One query returns all rows that changed."""
        return (RowQuery.since(self._prefix, head.epoch, table.offset),)

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:
        """See ``DesignReader``. Returns the old table if it cannot be brought to the head's offset."""
        section, newest = SQL_SECTION.of(head), -1
        ownership = section.term, section.began
        try:
            if table is not None and table.epoch == head.epoch:
                # The database was set back to a backup, or replaced by a copy that lags behind, and an owner may have
                # continued from there. Commits that this reader saw are lost.
                if head.next < table.offset or (ownership != self._ownership and section.began < table.offset):
                    return Loaded(table, f"commit {table.offset - 1}")
                query = RowQuery.since(self._prefix, head.epoch, table.offset)
                if query not in items:
                    items = (yield Step(fetch=[query])).items
                loaded, newest = _with_rows(table, items.get(query), head.next)
                is_whole = newest >= head.next - 1 or head.next == table.offset or not section.size
            else:
                table, loaded = None, Table.of(head.epoch, 0, unpack_record)
                for first in range(0, section.size, MAX_FETCH_ROWS_COUNT):
                    query = RowQuery.between(self._prefix, head.epoch, first, first + MAX_FETCH_ROWS_COUNT)
                    loaded, part_newest = _with_rows(loaded, (yield Step(fetch=[query])).items.get(query), head.next)
                    newest = max(newest, part_newest)
                    if loaded.size < min(first + MAX_FETCH_ROWS_COUNT, section.size):
                        break  # a row is missing, which is noticed below
                is_whole = newest >= head.next - 1 or not section.size
                loaded = loaded.advanced(head.next, {})
        except _DamagedRowError as error:
            DAMAGE.report(f"{self._prefix} row {error.slot}", str(error))
            return Loaded(table, f"an intact row {error.slot}")
        if loaded.size < section.size:
            return Loaded(table, f"row {loaded.size}")
        if is_whole:
            self._ownership = ownership
        return Loaded(loaded) if is_whole else Loaded(table, f"commit {head.next - 1}")


def _with_rows(table: Table, item: Item | None, offset: int) -> tuple[Table, int]:
    """Add the rows of a reply to a table. Returns the table and the latest commit among the rows.

    Rows of new slots are added as far as they continue the table without a hole. Raises ``CorruptItemError``.
    """
    found = unpack_found_rows(item.value) if item is not None else FoundRows(-1, [])
    rows: dict[int, Row] = {}
    appeared: dict[int, str] = {}
    incomplete: list[str] = []
    for slot, row in found.rows:
        try:
            heading = unpack_record(row)
        except CorruptItemError as error:
            raise _DamagedRowError(slot, str(error)) from None
        if slot < 0 or not are_names([heading.name]) or (slot < table.size and table.names[slot] != heading.name):
            raise _DamagedRowError(slot, f"it has a record of {heading.name!a}")
        rows[slot] = row
        if slot >= table.size:
            appeared[slot] = heading.name
        if heading.incomplete:
            incomplete.append(heading.name)
    names: list[str] = []
    while (name := appeared.pop(table.size + len(names), None)) is not None:
        names.append(name)
    for slot, name in appeared.items():
        del rows[slot]
        incomplete = [one for one in incomplete if one != name]
    return table.advanced(offset, rows, names, incomplete), found.newest
