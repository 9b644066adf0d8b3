"""SQLite stores values of any type in any column: heads and rows of a wrong type count as missing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from nodestate.model import fold, parse_event
from nodestate.ports import NodeRow, Put, RowQuery, Write, WriteStatus
from nodestate.sql.store import SqlStore
from nodestate.store.wire import unpack_found_rows
from tests.partition_owner import report

NO_UTF8: Final = "CAST(x'ff' AS TEXT)"
WRONG_VALUES: Final = {
    "value": ("'text'", "7", "1.5", NO_UTF8, str(2**62)),
    "cas": ("'text'", "1e300", "x'00'", NO_UTF8, "0", "-1", str(-(2**63))),
    "expires_at": ("'text'", "9e999", "x'00'", NO_UTF8),
}
"""By column of a head, SQL expressions of another type, and ids that no item has."""
WRONG_ROWS: Final = {
    "record": ("'text'", "7", "1.5", NO_UTF8),
    "commit_offset": ("'text'", "1e300", "x'00'", NO_UTF8),
    "slot": ("'text'", "1e300", "x'00'", NO_UTF8),
    "name": (NO_UTF8,),
}
RECORD: Final = fold(None, parse_event(report("n", 1))).record


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{tmp_path / 'cell.db'}", timeout_s=10.0, make_tables=True)
    yield store
    store.close()


@pytest.fixture
def file(store: SqlStore, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    store.fetch(["key"])  # makes the tables
    connection = sqlite3.connect(tmp_path / "cell.db", isolation_level=None)
    yield connection
    connection.close()


def test_a_head_of_a_wrong_type_or_id_counts_as_missing_and_can_be_added_again(
    store: SqlStore, file: sqlite3.Connection
) -> None:
    store.write([Write(Put.ADD, "other", b"right")])
    for column, values in WRONG_VALUES.items():
        for value in values:
            store.write([Write(Put.ADD, "key", b"value", ttl_s=60)])
            file.execute(f"UPDATE nodestate_heads SET {column} = {value} WHERE key = 'key'")  # noqa: S608 - our own
            found = store.fetch(["key", "other"])
            assert {key: item.value for key, item in found.items()} == {"other": b"right"}, (column, value)
            [written] = store.write([Write(Put.ADD, "key", b"again")])
            assert written.status is WriteStatus.STORED, (column, value)
            assert store.fetch(["key"])["key"].value == b"again"
            store.write([Write(Put.DELETE, "key")])


def test_a_row_of_a_wrong_type_is_left_out_and_can_be_written_again(store: SqlStore, file: sqlite3.Connection) -> None:
    assert RECORD is not None
    rows = tuple(NodeRow("place", 7, slot, 3, RECORD) for slot in range(2))
    query = RowQuery.of_epoch("place", 7)

    def write(number: int) -> None:
        store.write([Write(Put.ADD, f"key {number}", b"", rows=rows)])

    def slots() -> list[Any]:
        found = unpack_found_rows(store.fetch([query])[query].value)
        assert found.newest == 3
        return sorted(slot for slot, _ in found.rows)

    cases = [(column, value) for column, values in WRONG_ROWS.items() for value in values]
    for number, (column, value) in enumerate(cases):
        write(2 * number)
        file.execute(f"UPDATE nodestate_nodes SET {column} = {value} WHERE slot = 0")  # noqa: S608 - our own
        assert slots() == ([0, 1] if column == "name" else [1]), (column, value)
        write(2 * number + 1)
        assert slots() == [0, 1], (column, value)
