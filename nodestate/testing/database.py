"""The database double: rows and transactions in this process, with backups that a test can restore."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Final

from nodestate.errors import (
    DatabaseFullError,
)
from nodestate.ports import (
    Clock,
    Item,
    NodeRow,
    Put,
    Status,
    Write,
    Written,
)
from nodestate.store.memory import MemoryServer, StoredItem, item_size
from nodestate.store.wire import FoundRows, pack_found_rows, pack_record


@dataclass(frozen=True, slots=True)
class Backup:
    """What a ``MemoryDatabase`` held at some time."""

    entries: dict[str, StoredItem]
    rows: dict[str, dict[tuple[int, int], NodeRow]]


class MemoryDatabase(MemoryServer):
    """What a database does, in this process: it also takes a write's ``rows``, and answers questions for them.

    All writes of a call are carried out or none. What is stored survives ``restart``; ``restore`` sets it back to a
    ``backup``, and even then no CAS id comes again. With ``max_bytes`` a call that finds no room raises
    ``DatabaseFullError``. ``between`` is called in the midst of a fetch, after the heads and before the rows: what others
    do then.
    """

    def __init__(
        self,
        name: str = "database",
        *,
        max_value_bytes: int = 1_000_000,
        clock: Clock | None = None,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(name, max_value_bytes=max_value_bytes, clock=clock, max_bytes=max_bytes, no_evict=True)
        self.between: Callable[[], None] | None = None
        self._rows: dict[str, dict[tuple[int, int], NodeRow]] = {}
        """By place; then by epoch and slot."""

    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        """As ``ports.Store``; the rows that were asked for are items, too."""
        items = super().fetch([key for key in keys if _ROWS not in key])
        questions = [key for key in keys if _ROWS in key]
        if questions and self.between is not None:
            self.between()
        with self._lock:
            self._check_running()
            return items | {question: self._answer(question) for question in questions}

    def write(self, writes: Sequence[Write]) -> list[Written]:
        """As ``ports.Store``; all of it or nothing."""
        before = self.backup() if self._max_bytes is not None else None
        try:
            return super().write(writes)
        except DatabaseFullError:
            assert before is not None, "without a limit nothing is full"
            self.restore(before)
            raise

    def rows(self, place: str) -> list[NodeRow]:
        """The rows of a place, of all epochs, by epoch and slot."""
        return [row for _, row in sorted(self._rows.get(place, {}).items())]

    # -- faults

    def restart(self) -> None:
        """Stop and start; nothing is lost."""
        self.running = True

    def flush(self) -> None:
        """Somebody deletes everything."""
        super().flush()
        with self._lock:
            self._rows = {}

    def evict_rows(self, place: str, slots: Container[int]) -> None:
        """Somebody deletes rows."""
        with self._lock:
            for key in [key for key in self._rows.get(place, {}) if key[1] in slots]:
                self._used_bytes -= _row_size(self._rows[place].pop(key))

    def backup(self) -> Backup:
        """What is held now."""
        with self._lock:
            return Backup(dict(self._entries), {place: dict(rows) for place, rows in self._rows.items()})

    def restore(self, backup: Backup) -> None:
        """Set everything back to what it was then. Times to live have gone on."""
        with self._lock:
            self._entries = OrderedDict(backup.entries)
            self._rows = {place: dict(rows) for place, rows in backup.rows.items()}
            self._used_bytes = sum(item_size(key, entry.value) for key, entry in self._entries.items())
            self._used_bytes += sum(_row_size(row) for rows in self._rows.values() for row in rows.values())

    # -- inside, under the lock

    def _answer(self, question: str) -> Item:
        place, asked = _asked(question)
        found = [row for row in self._rows.get(place, {}).values() if asked(row)]
        answer = FoundRows(
            max((row.offset for row in found), default=-1), [(row.slot, pack_record(row.record)) for row in found]
        )
        return Item(pack_found_rows(answer), 0, None)

    def _write(self, write: Write) -> Written:
        if _ROWS in write.key:
            assert write.put is Put.DELETE, "questions can only be asked, or deleted"
            place, asked = _asked(write.key)
            gone = [key for key, row in self._rows.get(place, {}).items() if asked(row)]
            for key in gone:
                self._used_bytes -= _row_size(self._rows[place].pop(key))
            return Written(Status.STORED if gone else Status.MISSING)
        done = super()._write(write._replace(rows=()))
        if done.status is Status.FULL:
            raise DatabaseFullError(self.name, f"no room for {write.key}")
        for row in write.rows if done.status is Status.STORED else ():
            rows, key = self._rows.setdefault(row.place, {}), (row.epoch, row.slot)
            if key in rows:
                self._used_bytes -= _row_size(rows.pop(key))
            if not self._make_room(_row_size(row)):
                raise DatabaseFullError(self.name, f"no room for {row.record.name}")
            rows[key] = row
            self._used_bytes += _row_size(row)
        return done


_ROWS: Final = ":rows:"


def _row_size(row: NodeRow) -> int:
    return item_size(row.place, row.record.body) + len(row.record.name)


def _asked(question: str) -> tuple[str, Callable[[NodeRow], bool]]:
    """The place and the rows that a key of ``nodestate.store.keys`` asks for."""
    place, _, rest = question.partition(_ROWS)
    number, kind, *bounds = rest.split(":")
    epoch = int(number, 16)
    if kind == "all":
        return place, lambda row: row.epoch == epoch
    if kind == "since":
        offset = int(bounds[0])
        return place, lambda row: row.epoch == epoch and row.offset >= offset
    assert kind == "between", f"{question} asks for nothing that is known"
    first, end = map(int, bounds)
    return place, lambda row: row.epoch == epoch and first <= row.slot < end
