"""The database double: rows and transactions in this process, with backups that a test can restore."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from nodestate.errors import (
    DatabaseFullError,
)
from nodestate.ports import (
    Clock,
    Item,
    Key,
    NodeRow,
    Put,
    RowQuery,
    Write,
    WriteResult,
    WriteStatus,
)
from nodestate.store.memory import MemoryServer, StoredItem, item_size
from nodestate.store.wire import FoundRows, pack_found_rows, pack_record


@dataclass(frozen=True, slots=True)
class Backup:
    """The content of a ``MemoryDatabase`` at one moment: its items by key, and its rows by prefix, epoch and slot."""

    entries: dict[str, StoredItem]
    rows: dict[str, dict[tuple[int, int], NodeRow]]


class MemoryDatabase(MemoryServer):
    """A database in this process: a ``ports.Store`` that also stores the ``rows`` of a write, and answers ``RowQuery``.

    A call of ``write`` carries out all its writes or none. With ``max_bytes`` a call that finds no room raises
    ``DatabaseFullError``. Items and rows survive ``restart``.

    Faults: ``restore`` sets the content back to an earlier ``backup`` (no compare-and-swap id is used twice even then),
    ``flush`` and ``evict_rows`` delete, and ``before_rows`` lets a test act in the middle of a fetch::

        database = MemoryDatabase()
        backup = database.backup()
        database.write([Write(Put.ADD, "key", b"value")])
        database.restore(backup)
        assert database.fetch(["key"]) == {}
    """

    ticks = False

    def __init__(
        self,
        name: str = "database",
        *,
        max_value_bytes: int = 1_000_000,
        clock: Clock | None = None,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(name, max_value_bytes=max_value_bytes, clock=clock, max_bytes=max_bytes, no_evict=True)
        self.before_rows: Callable[[], None] | None = None
        """Called within ``fetch``, after it has read the heads and before it reads the rows: a test's concurrent write.
        """
        self._rows: dict[str, dict[tuple[int, int], NodeRow]] = {}
        """By prefix, then by epoch and slot."""

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``. The rows that a ``RowQuery`` selects are returned as one item."""
        items = super().fetch([key for key in keys if isinstance(key, str)], values_only=values_only)
        queries = [key for key in keys if isinstance(key, RowQuery)]
        if queries and self.before_rows is not None:
            self.before_rows()
        with self._lock:
            self._check_running()
            return items | {query: self._answer(query) for query in queries}

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``. Carries out all writes or none."""
        before = self.backup() if self._max_bytes is not None else None
        try:
            return super().write(writes)
        except DatabaseFullError:
            assert before is not None, "a database without a limit is never full"
            self.restore(before)
            raise

    def rows(self, prefix: str) -> list[NodeRow]:
        """The rows of all epochs under a prefix of ``store.keys``, sorted by epoch and slot."""
        return [row for _, row in sorted(self._rows.get(prefix, {}).items())]

    # -- faults

    def restart(self) -> None:
        """Stop and start. Nothing is lost."""
        self.running = True

    def flush(self) -> None:
        """Delete all items and rows, as an operator may do."""
        super().flush()
        with self._lock:
            self._rows = {}

    def evict_rows(self, prefix: str, slots: Container[int]) -> None:
        """Delete the rows of these slots under a prefix, as an operator may do."""
        with self._lock:
            for key in [key for key in self._rows.get(prefix, {}) if key[1] in slots]:
                self._used_bytes -= _row_size(self._rows[prefix].pop(key))

    def backup(self) -> Backup:
        """A copy of all items and rows, for ``restore``."""
        with self._lock:
            return Backup(dict(self._entries), {prefix: dict(rows) for prefix, rows in self._rows.items()})

    def restore(self, backup: Backup) -> None:
        """Replace all items and rows by the content of a backup. Times to live have gone on meanwhile."""
        with self._lock:
            self._entries = OrderedDict(backup.entries)
            self._rows = {prefix: dict(rows) for prefix, rows in backup.rows.items()}
            self._used_bytes = sum(item_size(key, entry.value) for key, entry in self._entries.items())
            self._used_bytes += sum(_row_size(row) for rows in self._rows.values() for row in rows.values())

    # -- inside, under the lock

    def _answer(self, query: RowQuery) -> Item:
        found = [row for row in self._rows.get(query.prefix, {}).values() if query.selects(row)]
        answer = FoundRows(
            max((row.offset for row in found), default=-1), [(row.slot, pack_record(row.record)) for row in found]
        )
        return Item(pack_found_rows(answer), 0, None)

    def _write(self, write: Write) -> WriteResult:
        if write.put is Put.DELETE_ROWS:
            query = write.query
            assert query is not None, "rows are deleted by a query"
            rows_there = self._rows.get(query.prefix, {})
            gone = [key for key, row in rows_there.items() if query.selects(row)]
            for key in gone:
                self._used_bytes -= _row_size(rows_there.pop(key))
            return WriteResult(WriteStatus.STORED if gone else WriteStatus.MISSING)
        done = super()._write(write._replace(rows=()))
        if done.status is WriteStatus.FULL:
            raise DatabaseFullError(self.name, f"no room for {write.key}")
        for row in write.rows if done.status is WriteStatus.STORED else ():
            rows, key = self._rows.setdefault(row.prefix, {}), (row.epoch, row.slot)
            if key in rows:
                self._used_bytes -= _row_size(rows.pop(key))
            if not self._make_room(_row_size(row)):
                raise DatabaseFullError(self.name, f"no room for {row.record.name}")
            rows[key] = row
            self._used_bytes += _row_size(row)
        return done


def _row_size(row: NodeRow) -> int:
    return item_size(row.prefix, row.record.body) + len(row.record.name)
