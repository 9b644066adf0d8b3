"""Rows and heads in a database are changed while a cell has no consumer; then as for the values of memcached."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from nodestate.sql.store import SqlStore
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock
from tests.fuzz.mutation import FLOATS, NUMBERS, TEXTS, mutated, mutated_bytes, mutated_item
from tests.fuzz.two_partitions import TwoPartitionCell

MEMORY_FILES: Final = Path("/dev/shm")  # noqa: S108 - the database is in a directory of its own there
"""A directory in memory, so that a commit does not wait for a disk."""
DESIGNS: Final = ("sql",)
HEALED_SHARE: Final = 0.15
"""The share of inputs after which the cell runs until all is right again, which takes most of the time."""
NODE_COLUMNS: Final = (
    *("epoch", "slot", "commit_offset", "place", "name"),
    *("incarnation", "generation", "reported_at", "status", "gone"),
)


class _Store(SqlStore):
    """A store whose database has the clock of the cell."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_s=10.0, make_tables=True)
        self.clock = ManualClock()

    def _now(self, _connection: sa.Connection) -> float:
        self._ahead_s = 0.0, 0.0
        return self.clock.monotonic()


class _Database(NamedTuple):
    """A SQLite file, and the content that the consumer stored."""

    file: sqlite3.Connection
    store: _Store
    heads: list[Any]
    nodes: list[Any]
    passed_s: float
    """The seconds that the consumer ran."""
    directory: TemporaryDirectory[str]
    """Holds the file, as long as this object lives."""

    def set_back(self) -> None:
        """Restore the content that the consumer stored."""
        with self.file:
            for table, rows in (("nodestate_heads", self.heads), ("nodestate_nodes", self.nodes)):
                self.file.execute(f"DELETE FROM {table}")  # noqa: S608 - our own table
                values = ", ".join("?" * len(rows[0]))
                self.file.executemany(f"INSERT INTO {table} VALUES ({values})", rows)  # noqa: S608 - our own table


@functools.cache
def _database() -> _Database:
    directory = TemporaryDirectory(dir=MEMORY_FILES if MEMORY_FILES.is_dir() else None)
    path = Path(directory.name) / "cell.db"
    store = _Store(f"sqlite:///{path}")
    began = store.clock.monotonic()
    TwoPartitionCell(DESIGNS, Stores((), store), store.clock).fill()
    file = sqlite3.connect(path)
    heads = file.execute("SELECT * FROM nodestate_heads").fetchall()
    nodes = file.execute("SELECT * FROM nodestate_nodes").fetchall()
    return _Database(file, store, heads, nodes, store.clock.monotonic() - began, directory)


def run(data: Random) -> bool:
    """Change the database once to three times."""
    database = _database()
    database.set_back()
    reached = True
    with database.file:
        for _ in range(data.randint(1, 3)):
            reached &= _change(data, database)
    clock = database.store.clock = ManualClock()
    clock.advance(database.passed_s)
    cell = TwoPartitionCell(DESIGNS, Stores((), database.store), clock)
    cell.take_over()
    if data.random() < HEALED_SHARE:
        cell.heal()
    return reached


def _change(data: Random, database: _Database) -> bool:
    """Change a row or a head of partition 0, whose keys have ``:2.0:``. Returns False if a checksum is wrong then."""
    execute, kind = database.file.execute, data.randrange(10)
    slot, value = data.randrange(2), data.choice(("?", "?", "CAST(? AS TEXT)"))
    if kind < 3:
        [encoded] = (row[-1] for row in database.nodes if ":2.0:" in row[0] and row[2] == slot)
        record = msgspec.msgpack.encode(mutated(data, msgspec.msgpack.decode(encoded)))
        record = mutated_bytes(data, record) if data.random() < 0.2 else record
        execute("UPDATE nodestate_nodes SET record = ? WHERE place LIKE '%:2.0:%' AND slot = ?", (record, slot))
    elif kind < 5:
        column = data.choice((*NODE_COLUMNS, "record"))
        where = "place LIKE '%:2.0:%' AND slot = ?"
        asked = f"UPDATE OR REPLACE nodestate_nodes SET {column} = {value} WHERE {where}"  # noqa: S608 - our own table
        execute(asked, (_scalar(data), slot))
    elif kind == 5:
        asked = f"INSERT OR REPLACE INTO nodestate_nodes SELECT place, epoch, ?, {', '.join(NODE_COLUMNS[4:])}, "
        asked += "commit_offset, record FROM nodestate_nodes WHERE place LIKE '%:2.0:%' AND slot = ?"
        execute(asked, (data.choice((2, 3, -1, _scalar(data))), slot))
    elif kind == 6:
        execute("DELETE FROM nodestate_nodes WHERE place LIKE '%:2.0:%' AND slot = ?", (slot,))
    elif kind == 7:
        column = data.choice(("value", "cas", "expires_at"))
        key = data.choice([row[0] for row in database.heads if ":2.0:" in row[0]])
        execute(f"UPDATE nodestate_heads SET {column} = {value} WHERE key = ?", (_scalar(data), key))  # noqa: S608 - ours
    else:
        key, value, *_ = data.choice([row for row in database.heads if ":2.0:" in row[0]])
        raw, reached = mutated_item(data, value)
        execute("UPDATE nodestate_heads SET value = ? WHERE key = ?", (raw, key))
        return reached
    return True


def _scalar(data: Random) -> Any:
    """A value of any type: SQLite stores any in any column."""
    numbers = [number for number in NUMBERS if -(2**63) <= number < 2**63]
    floats = [number for number in FLOATS if number == number]  # noqa: PLR0124 - NaN is NULL, which no column allows
    return data.choice((data.choice(numbers), data.choice(floats), data.choice(TEXTS), data.randbytes(3), b""))
