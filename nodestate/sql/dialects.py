"""What differs between databases: how a row replaces another, what the time is, how long to wait, and what errors mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql, sqlite

from nodestate.errors import ConfigError, DatabaseFullError, StoreError, StoreRefusedError, StoreUnavailableError

DRIVERS: Final = {"mysql": "pymysql", "mariadb": "pymysql", "postgresql": "psycopg", "sqlite": "pysqlite"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of database. ``now``: its clock, seconds since 1970; ``add`` leaves a row that is there as it is, ``put``
    replaces it. Codes are those of the driver's errors.
    """

    now: str
    insert: Callable[[sa.Table], Any]
    connect_args: Callable[[float], dict[str, Any]]
    isolation: str | None
    again: frozenset[str]
    full: frozenset[str]
    refused: frozenset[str]
    refused_in_words: re.Pattern[str] = re.compile(r"(?!)")  # errors of a connect that come without a code

    def add(self, table: sa.Table) -> Any:
        """An INSERT that does nothing where the row is there."""
        into = self.insert(table)
        if isinstance(into, mysql.Insert):  # its way to do nothing: an update that changes nothing counts no row
            key = next(iter(table.primary_key))
            return into.on_duplicate_key_update({key.name: key})
        return into.on_conflict_do_nothing()

    def put(self, table: sa.Table) -> Any:
        """An INSERT that replaces the row that is there."""
        into, key = self.insert(table), list(table.primary_key)
        others = [column.name for column in table.c if not column.primary_key]
        if isinstance(into, mysql.Insert):
            return into.on_duplicate_key_update({name: into.inserted[name] for name in others})
        return into.on_conflict_do_update(index_elements=key, set_={name: into.excluded[name] for name in others})


_MYSQL: Final = Dialect(
    now="UNIX_TIMESTAMP(NOW(6))",
    insert=mysql.insert,
    connect_args=lambda s: {
        "connect_timeout": max(1, round(s)),
        "read_timeout": s,
        "write_timeout": s,
        # Shorter than what this side waits: a transaction that it gave up would keep its locks for as long as it waits
        # for another's, by default 50 seconds.
        "init_command": f"SET SESSION innodb_lock_wait_timeout = {max(1, round(s / 2))}",
    },
    isolation="READ COMMITTED",
    again=frozenset({"1213", "1205"}),  # deadlock, lock wait
    full=frozenset({"1114", "1021", "3"}),  # table full, disk full, error writing a file
    refused=frozenset({"1142", "1044", "1045", "1049", "1290", "1792", "1836", "1143", "1227"}),
)
_POSTGRES: Final = Dialect(
    now="EXTRACT(EPOCH FROM clock_timestamp())",
    insert=postgresql.insert,
    connect_args=lambda s: {
        "connect_timeout": max(1, round(s)),
        # A little shorter than what this side waits, as a server that gives up says why.
        "options": f"-c statement_timeout={round(s * 800)} -c lock_timeout={round(s * 800)}",
        "tcp_user_timeout": round(s * 1000),
    },
    isolation="READ COMMITTED",
    again=frozenset({"40P01", "40001", "55P03"}),
    full=frozenset({"53100", "53200", "54000"}),
    refused=frozenset({"42501", "25006", "28000", "28P01", "3D000"}),
    refused_in_words=re.compile(
        r"authentication failed|pg_hba\.conf|(role|database) .* does not exist|permission denied"
    ),
)
_SQLITE: Final = Dialect(
    now="(julianday('now') - 2440587.5) * 86400.0",
    insert=sqlite.insert,
    connect_args=lambda s: {"timeout": s},
    isolation=None,
    again=frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_BUSY_SNAPSHOT"}),
    full=frozenset({"SQLITE_FULL"}),
    refused=frozenset({"SQLITE_READONLY", "SQLITE_READONLY_DBMOVED", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_CANTOPEN"}),
)
_DIALECTS: Final[Mapping[str, Dialect]] = {
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": _POSTGRES,
    "sqlite": _SQLITE,
}


def dialect_of(url: str) -> tuple[sa.URL, Dialect]:
    """The URL with the driver that nodestate uses, and its dialect. Raises ``ConfigError``."""
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise ConfigError(f"sql {url!r}: want {_EXAMPLES}") from None
    name = parsed.get_backend_name()
    if name not in _DIALECTS:
        raise ConfigError(f"sql {name!r} is no database that nodestate knows: want {_EXAMPLES}")
    if "+" not in parsed.drivername:
        parsed = parsed.set(drivername=f"{name}+{DRIVERS[name]}")
    return parsed, _DIALECTS[name]


def engine_of(url: str, timeout_s: float, **options: Any) -> sa.Engine:
    """An engine with the dialect's timeouts; nothing is connected yet. Raises ``ConfigError``."""
    parsed, dialect = dialect_of(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigError(f"sql {url!r} lives and ends with one connection: want sqlite:////path/to/file.db")
    try:
        engine = sa.create_engine(parsed, connect_args=dialect.connect_args(timeout_s), **options)
        if parsed.drivername == "postgresql+psycopg":
            from nodestate.sql.waiting import connection_with  # noqa: PLC0415  its driver is nobody else's

            sa.event.listen(
                engine, "do_connect", lambda _dialect, _record, given, named: connection_with(timeout_s, given, named)
            )
        return engine
    except ModuleNotFoundError as error:
        raise ConfigError(f"sql {parsed.drivername} needs its driver ({error}): pip install 'nodestate[sql]'") from None


_EXAMPLES: Final = (
    "mariadb://user:password@host/nodestate, postgresql://user:password@host/nodestate or sqlite:///file.db"
)


def code_of(error: exc.DBAPIError) -> str:
    """The driver's own code of an error, empty where it has none."""
    original: Any = error.orig
    first = next(iter(getattr(original, "args", ())), "")
    if isinstance(first, int):  # MariaDB's, which says more than its sqlstate
        return str(first)
    for name in ("sqlstate", "sqlite_errorname"):
        if code := getattr(original, name, None):
            return str(code)
    return str(first)


def meaning_of(error: exc.SQLAlchemyError, dialect: Dialect, server: str) -> StoreError:
    """What a database's error is to whoever uses the store."""
    cause = str(getattr(error, "orig", None) or error)
    if isinstance(error, exc.DBAPIError):
        code = code_of(error)
        if code in dialect.full:
            return DatabaseFullError(server, cause)
        if code in dialect.refused or dialect.refused_in_words.search(code):
            return StoreRefusedError(server, cause)
    return StoreUnavailableError(server, cause)
