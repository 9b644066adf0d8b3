"""The store on a database, by SQLAlchemy.

Keys are rows of the table ``schema.HEADS``. The ``rows`` of a write go to ``schema.NODES``, in the transaction that
writes the key. All writes of a call are one transaction, and all fetches are one query to each table.

- CAS ids are random, so an id is never used again: not for a key that was deleted and added again, and not after a
  backup was restored.
- Times to live use the database's clock, which all processes share, and count from the moment that the writer names, by
  default the sending, and not from the moment at which a lock was granted. The difference between the database's clock
  and this process' clock is measured again every minute, because an operator may set a clock. It is known to within the
  duration of the measurement. Writes use the lower bound, and reads use the upper one, so no item looks younger than it
  is.
- Heads are read before rows, so rows are never older than the head that was read with them.
- Heads with an id below 1 are damaged: they count as missing, and an ``ADD`` replaces them. Heads and rows with a value
  of a wrong type, which SQLite stores in any column, are damaged, too.
- A deadlock, or a lock that is not granted, rolls the transaction back. It is tried again a few times, as long as all
  tries together take no longer than ``timeout_s``.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from nodestate.errors import ItemTooLargeError, SchemaError, StoreError
from nodestate.ports import MAX_TTL_S, Item, Key, NodeRow, Put, RowQuery, RowSelection, Write, WriteResult, WriteStatus
from nodestate.ports.forks import call_in_children, sever_in_children
from nodestate.sql.dialects import code_of, dialect_of, engine_of, meaning_of, shown_url
from nodestate.sql.schema import HEADS, MAX_VALUE_BYTES, NODES, REVISION, REVISION_TABLE, tables_without_transactions
from nodestate.store.damage import DAMAGE
from nodestate.store.wire import FoundRows, pack_found_rows, pack_record

T = TypeVar("T")

MAX_TRIES_COUNT: Final = 5
MAX_KEYS_COUNT: Final = 500
"""Keys that one statement reads."""
MAX_ROWS_COUNT: Final = 1_000
"""Rows that one statement writes."""
CLOCK_TRUSTED_S: Final = 60.0
"""Seconds between two measurements of the database's clock."""
WRONG_TYPE: Final = "a column has a value of another type, which only SQLite stores"


class SqlStore:
    """One database behind ``ports.Store``; see there for the contract.

    It connects at the first call, and again at the first call after an error. The first call raises ``SchemaError`` if
    the tables do not have this version's revision.

    Args:
        url: SQLAlchemy URL of the database.
        timeout_s: bounds a connect, and each wait for an answer, in seconds.
        make_tables: create the tables in a SQLite file. Other databases have an operator who does.
    """

    def __init__(self, url: str, *, timeout_s: float, make_tables: bool = False) -> None:
        # True if missing tables are created in a SQLite file.
        self._make_tables = make_tables
        self._url, self._dialect = dialect_of(url)
        # The URL without its password.
        self.name = shown_url(self._url)
        # Largest head or record.
        self.max_value_bytes = MAX_VALUE_BYTES
        # Longest time for a connect, and for each answer, in seconds.
        self._timeout_s = timeout_s
        # None until the first call, and after an error.
        self._engine: sa.Engine | None = None
        # Connection for fetches, with autocommit.
        self._reading: sa.Connection | None = None
        # Connection for writes.
        self._writing: sa.Connection | None = None
        # Lower and upper bound of the database's clock minus this process' monotonic clock, in seconds.
        self._ahead_s = 0.0, 0.0
        # Monotonic time of the last measurement of the database's clock.
        self._asked_at = -math.inf
        # INSERT of a head that does nothing if the key exists.
        self._add = self._dialect.add(HEADS)
        # INSERT of rows that replaces existing ones.
        self._put_rows = self._dialect.put(NODES)
        sever_in_children(self)
        call_in_children(self._leave_to_parent)

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:  # noqa: ARG002 - it saves nothing here
        """See ``ports.Store``. Heads are read before rows."""
        if not keys:
            return {}
        heads = [key for key in dict.fromkeys(keys) if isinstance(key, str)]
        queries = [key for key in dict.fromkeys(keys) if isinstance(key, RowQuery)]

        def ask() -> dict[Key, Item]:
            with self._reader() as connection:
                items = self._heads(connection, heads)
                if queries:
                    items.update(self._rows(connection, queries))
                return items

        return self._with_retries(ask)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``. All writes are one transaction."""
        if not writes:
            return []
        for write in writes:
            if len(write.value) > MAX_VALUE_BYTES:
                raise ItemTooLargeError(self.name, write.key, len(write.value), MAX_VALUE_BYTES)
        asked_at = time.monotonic()

        def carry_out() -> list[WriteResult]:
            with self._writer() as connection, connection.begin():
                return self._carried_out(connection, writes, asked_at)

        return self._with_retries(carry_out)

    def server_time_at(self, moment: float) -> None:
        """See ``ports.Store``. A database's clock may be set, so it dates no values."""

    def close(self) -> None:
        """Close the connections. The next call reconnects."""
        for connection in (self._reading, self._writing):
            if connection is not None:
                connection.invalidate() if connection.in_transaction() else connection.close()
        self._reading = self._writing = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        self._asked_at = -math.inf

    def descriptors(self) -> list[int]:
        """See ``ports.forks.SocketOwner``. A SQLite file has no connection."""
        held = [connection for connection in (self._reading, self._writing) if connection is not None]
        drivers: list[Any] = [connection.connection.driver_connection for connection in held]
        sockets = [getattr(driver, "_sock", driver) for driver in drivers]  # PyMySQL's, or psycopg's connection
        return [each.fileno() for each in sockets if hasattr(each, "fileno")]

    def _leave_to_parent(self) -> None:
        """Drop the connections of the parent process after a fork, without a rollback, which would only fail."""
        for connection in (self._reading, self._writing):
            if connection is not None:
                connection.invalidate()
        self._reading = self._writing = None
        self._drop()

    # -- reading

    def _heads(self, connection: sa.Connection, keys: Sequence[str]) -> dict[Key, Item]:
        now = self._now(connection)
        items: dict[Key, Item] = {}
        for at in range(0, len(keys), MAX_KEYS_COUNT):
            asked = _HEADS_BY_KEY, {"keys": keys[at : at + MAX_KEYS_COUNT]}
            for key, value, cas, expires_at in connection.execute(*asked):
                if not (isinstance(value, bytes) and isinstance(cas, int) and isinstance(expires_at, int | None)):
                    DAMAGE.report(key, WRONG_TYPE)
                elif cas < 1:
                    DAMAGE.report(key, "its compare-and-swap id is one that no item has")
                elif expires_at is None or expires_at > now:
                    items[key] = Item(value, cas, None if expires_at is None else math.ceil(expires_at - now))
        return items

    def _rows(self, connection: sa.Connection, queries: Sequence[RowQuery]) -> dict[Key, Item]:
        """Answer all queries of a call by one statement, each part of which finds its rows by an index of its own."""
        rows: dict[str, list[tuple[int, bytes]]] = {query.prefix: [] for query in queries}
        newest = dict.fromkeys(rows, -1)
        assert len(rows) == len(queries), "a call has at most one query per partition and design"
        values = {f"{name}{n}": value for n, query in enumerate(queries) for name, value in _values_of(query).items()}
        statement = _select_of(tuple(query.selection for query in queries))
        for prefix, slot, offset, record in connection.execute(statement, values):
            if isinstance(slot, int) and isinstance(offset, int) and isinstance(record, bytes):
                rows[prefix].append((slot, record))
                newest[prefix] = max(newest[prefix], offset)
            else:
                DAMAGE.report(f"{prefix} row {slot!a:.20}", WRONG_TYPE)
        return {
            query: Item(pack_found_rows(FoundRows(newest[query.prefix], rows[query.prefix])), 0, None)
            for query in queries
        }

    # -- writing

    def _carried_out(self, connection: sa.Connection, writes: Sequence[Write], asked_at: float) -> list[WriteResult]:
        now = self._now(connection)
        outcomes: list[WriteResult] = []
        rows: list[NodeRow] = []
        for write in writes:
            if write.put is Put.DELETE:
                outcomes.append(self._deleted(connection, write.key, now))
                continue
            if write.put is Put.DELETE_ROWS:
                assert write.query is not None, "rows are deleted by a query"
                outcomes.append(self._rows_deleted(connection, write.query, now))
                continue
            cas = secrets.randbits(62) + 1
            counts_from = math.floor((asked_at if write.as_of is None else write.as_of) + self._ahead_s[0])
            expires_at = counts_from + min(write.ttl_s, MAX_TTL_S) if write.ttl_s else None
            values = {"value": write.value, "cas": cas, "expires_at": expires_at}
            outcome = (self._added if write.put is Put.ADD else self._swapped)(connection, write, values, now)
            outcomes.append(outcome)
            if outcome.status is WriteStatus.STORED:
                rows += write.rows
        for at in range(0, len(rows), MAX_ROWS_COUNT):
            connection.execute(self._put_rows, list(map(_columns, rows[at : at + MAX_ROWS_COUNT])))
        return outcomes

    def _added(self, connection: sa.Connection, write: Write, values: dict[str, Any], now: float) -> WriteResult:
        missing = sa.or_(
            HEADS.c.expires_at <= now, HEADS.c.cas < 1, *[sa.text(each) for each in self._dialect.wrong_types]
        )
        connection.execute(sa.delete(HEADS).where(HEADS.c.key == write.key, missing))
        done = connection.execute(self._add, {"key": write.key, **values})
        # Databases' counts of rows are unreliable for an insert that did nothing, so compare the id, which is unique.
        there = connection.execute(sa.select(HEADS.c.cas).where(HEADS.c.key == write.key)).scalar()
        stored = done.rowcount != 0 and there == values["cas"]
        return WriteResult(WriteStatus.STORED, values["cas"]) if stored else WriteResult(WriteStatus.CONFLICT)

    def _swapped(self, connection: sa.Connection, write: Write, values: dict[str, Any], now: float) -> WriteResult:
        if write.cas >= 2**63:  # no such id was ever given, and the column cannot hold it
            write = write._replace(cas=0)
        mine = (HEADS.c.key == write.key, HEADS.c.cas == write.cas, _live(now))
        if connection.execute(sa.update(HEADS).where(*mine).values(values)).rowcount:
            return WriteResult(WriteStatus.STORED, values["cas"])
        there = connection.execute(sa.select(HEADS.c.cas).where(HEADS.c.key == write.key, _live(now))).scalar()
        return WriteResult(WriteStatus.MISSING if there is None else WriteStatus.CONFLICT)

    def _deleted(self, connection: sa.Connection, key: str, now: float) -> WriteResult:
        count = connection.execute(sa.delete(HEADS).where(HEADS.c.key == key, _live(now))).rowcount
        return WriteResult(WriteStatus.STORED if count else WriteStatus.MISSING)

    def _rows_deleted(self, connection: sa.Connection, query: RowQuery, now: float) -> WriteResult:
        """Delete rows of a former epoch and, as this is rare, also all heads that have expired."""
        values = {f"{name}0": value for name, value in _values_of(query).items()}
        count = connection.execute(_delete_of(query.selection), values).rowcount
        connection.execute(sa.delete(HEADS).where(HEADS.c.expires_at <= now))
        return WriteResult(WriteStatus.STORED if count else WriteStatus.MISSING)

    # -- connections

    def _with_retries(self, call: Callable[[], T]) -> T:
        until = time.monotonic() + self._timeout_s
        for tries_left in range(MAX_TRIES_COUNT - 1, -1, -1):
            try:
                return call()
            except _RetryableError as error:
                if not tries_left or time.monotonic() >= until:
                    raise error.meaning from error
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _reader(self) -> Iterator[sa.Connection]:
        with self._translating_errors(read_only=True):
            if self._reading is None:
                self._reading = self._connected().execution_options(isolation_level="AUTOCOMMIT")
            yield self._reading

    @contextmanager
    def _writer(self) -> Iterator[sa.Connection]:
        with self._translating_errors():
            if self._writing is None:
                self._writing = self._connected()
            yield self._writing

    def _connected(self) -> sa.Connection:
        if self._engine is None:
            options: dict[str, Any] = {"isolation_level": self._dialect.isolation} if self._dialect.isolation else {}
            url = self._url.render_as_string(hide_password=False)
            engine = engine_of(url, self._timeout_s, pool_size=2, max_overflow=0, **options)
            try:
                if self._make_tables and self._url.get_backend_name() == "sqlite":
                    from nodestate.sql.migrate import upgrade  # noqa: PLC0415  Alembic is half a second's import

                    upgrade(url)
                require_revision(engine, self.name)
            except BaseException:
                engine.dispose()
                raise
            self._engine = engine
        return self._engine.connect()

    @contextmanager
    def _translating_errors(self, *, read_only: bool = False) -> Iterator[None]:
        """Translate a database's errors to the store's, and close the connections after any error.

        A fetch whose connection broke, for example because it was idle for long, can be tried again. The outcome of a
        write is then unknown, so it cannot.
        """
        try:
            yield
        except StoreError:
            raise
        except exc.SQLAlchemyError as error:
            self._drop()
            meaning = meaning_of(error, self._dialect, self._url)
            undone = isinstance(error, exc.DBAPIError) and code_of(error) in self._dialect.again
            if undone or (read_only and isinstance(error, exc.DBAPIError) and error.connection_invalidated):
                raise _RetryableError(meaning) from error
            raise meaning from error
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        try:
            self.close()
        except exc.SQLAlchemyError:
            self._reading = self._writing = self._engine = None

    def _now(self, connection: sa.Connection) -> float:
        """An upper bound of the database's clock, in seconds since 1970."""
        now = time.monotonic()
        if now - self._asked_at > CLOCK_TRUSTED_S:
            said = float(connection.execute(sa.text(f"SELECT {self._dialect.now}")).scalar_one())
            self._ahead_s = said - time.monotonic(), said - now
            self._asked_at = now
        return now + self._ahead_s[1]


class _RetryableError(StoreError):
    """Raised within this module if a transaction was rolled back or a fetch failed, and can be tried again."""

    def __init__(self, meaning: StoreError) -> None:
        super().__init__(str(meaning))
        # The error to raise if no try succeeds.
        self.meaning = meaning


def _unconverted(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The column as the driver gives it. SQLAlchemy fails to convert a value of another type than the column's."""
    return sa.type_coerce(column, sa.types.NULLTYPE).label(column.name)


_HEADS_BY_KEY: Final = sa.select(
    HEADS.c.key, _unconverted(HEADS.c.value), _unconverted(HEADS.c.cas), _unconverted(HEADS.c.expires_at)
).where(HEADS.c.key.in_(sa.bindparam("keys", expanding=True)))


def _live(now: float) -> sa.ColumnElement[bool]:
    return sa.or_(HEADS.c.expires_at.is_(None), HEADS.c.expires_at > now)


_CONDITIONS: Final = {
    RowSelection.ALL: "place = :prefix{n} AND epoch = :epoch{n}",
    RowSelection.SINCE_OFFSET: "place = :prefix{n} AND epoch = :epoch{n} AND commit_offset >= :low{n}",
    RowSelection.SLOT_RANGE: "place = :prefix{n} AND epoch = :epoch{n} AND slot >= :low{n} AND slot < :high{n}",
}
"""The condition of each kind of query, with a number at the end of the names of its values."""
_VALUES: Final = {
    RowSelection.ALL: ("prefix", "epoch"),
    RowSelection.SINCE_OFFSET: ("prefix", "epoch", "low"),
    RowSelection.SLOT_RANGE: ("prefix", "epoch", "low", "high"),
}
"""The fields of a ``RowQuery`` that its condition uses."""


def _values_of(query: RowQuery) -> dict[str, str | int]:
    return {name: getattr(query, name) for name in _VALUES[query.selection]}


# The statement is text, because a reader sends the same query again and again: to build an SQLAlchemy expression and
# look it up would each time take longer than the answer. It has no condition with OR, for which PostgreSQL reads the
# whole table.
@lru_cache(maxsize=256)
def _select_of(selections: tuple[RowSelection, ...]) -> sa.TextClause:
    columns = "SELECT place, slot, commit_offset, record FROM nodestate_nodes WHERE "
    return sa.text(
        " UNION ALL ".join(columns + _CONDITIONS[selection].format(n=n) for n, selection in enumerate(selections))
    )


@lru_cache
def _delete_of(selection: RowSelection) -> sa.TextClause:
    condition = _CONDITIONS[selection].format(n=0)
    return sa.text(f"DELETE FROM nodestate_nodes WHERE {condition}")  # noqa: S608 - the conditions are constants


def _columns(row: NodeRow) -> dict[str, Any]:
    prefix, epoch, slot, offset, record = row
    return {
        "place": prefix,
        "epoch": epoch,
        "slot": slot,
        "name": record.name,
        "incarnation": record.incarnation,
        "generation": record.generation,
        "reported_at": record.reported_at,
        "status": record.status,
        "gone": record.gone,
        "commit_offset": offset,
        "record": pack_record(record),
    }


def require_revision(engine: sa.Engine, name: str) -> None:
    """Raise ``SchemaError`` unless the tables have the revision that this version reads and writes."""
    revision = sa.table(REVISION_TABLE, sa.column("version_num"))
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(REVISION_TABLE):
            raise SchemaError(name, "it has no tables of nodestate")
        found = connection.execute(sa.select(revision.c.version_num)).scalar()
        wrong = tables_without_transactions(connection)
    if found != REVISION:
        raise SchemaError(name, f"its tables have revision {found}, and this version needs {REVISION}")
    if wrong:
        raise SchemaError(
            name,
            f"{' and '.join(wrong)} have an engine without transactions, and need InnoDB",
            "run 'nodestate sql upgrade', which changes the engine",
        )
