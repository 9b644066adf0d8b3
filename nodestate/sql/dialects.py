"""Differences between databases: how to replace a row, read the clock, limit waiting times, and interpret errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql, sqlite

from nodestate.errors import ConfigError, DatabaseFullError, StoreError, StoreRefusedError, StoreUnavailableError
from nodestate.masking import safe_text, safe_url

DRIVERS: Final = {"mysql": "pymysql", "mariadb": "pymysql", "postgresql": "psycopg", "sqlite": "pysqlite"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of database. Error codes are the driver's (``code_of``)."""

    now: str
    """SQL expression for its clock, in seconds since 1970."""
    insert: Callable[[sa.Table], Any]
    """Creates its INSERT statement."""
    connect_args: Callable[[float], dict[str, Any]]
    """Arguments for a connect whose waiting times are limited to this number of seconds."""
    isolation: str | None
    """Isolation level; None for the driver's default."""
    again: frozenset[str]
    """Codes of errors after which the transaction was rolled back and can be tried again."""
    full: frozenset[str]
    """Codes of errors for lack of space."""
    refused: frozenset[str]
    """Codes of errors for lack of rights."""
    parameters: tuple[str, ...]
    """Parameters that a URL may have after the question mark."""
    tls: str = ""
    """Advice for an error of TLS."""
    wrong_types: tuple[str, ...] = ()
    """SQL conditions for heads with a value of a wrong type; empty if the database stores none."""
    refused_in_words: re.Pattern[str] = re.compile(r"(?!)")
    """Texts of connect errors without a code that mean a lack of rights."""

    def add(self, table: sa.Table) -> Any:
        """An INSERT that does nothing if the row exists."""
        into = self.insert(table)
        if isinstance(into, mysql.Insert):  # an update that changes nothing counts as no row
            key = next(iter(table.primary_key))
            return into.on_duplicate_key_update({key.name: key})
        return into.on_conflict_do_nothing()

    def put(self, table: sa.Table) -> Any:
        """An INSERT that replaces the row if it exists."""
        into, key = self.insert(table), list(table.primary_key)
        others = [column.name for column in table.c if not column.primary_key]
        if isinstance(into, mysql.Insert):
            return into.on_duplicate_key_update({name: into.inserted[name] for name in others})
        return into.on_conflict_do_update(index_elements=key, set_={name: into.excluded[name] for name in others})


_MYSQL: Final = Dialect(
    # Not UNIX_TIMESTAMP(NOW(6)): that converts to the session's time zone and back, which is ambiguous in the hour that
    # summer time repeats, and so wrong by an hour.
    now="TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6",
    insert=mysql.insert,
    connect_args=lambda s: {
        "connect_timeout": max(1, round(s)),
        "read_timeout": s,
        "write_timeout": s,
        # Shorter than this side's limit. Otherwise a transaction that this side gave up would keep its locks while it
        # waits for the locks of another, by default for 50 seconds.
        "init_command": f"SET SESSION innodb_lock_wait_timeout = {max(1, round(s / 2))}",
    },
    isolation="READ COMMITTED",
    again=frozenset({"1213", "1205"}),  # deadlock, lock wait
    full=frozenset({"1114", "1021", "3"}),  # table full, disk full, error writing a file
    refused=frozenset({"1142", "1044", "1045", "1049", "1290", "1665", "1792", "1836", "1143", "1227"}),
    parameters=("ssl_ca", "ssl_cert", "ssl_key", "ssl_cipher", "unix_socket", "charset"),
    tls="the parameters ssl_ca, ssl_cert and ssl_key of the URL name the files for TLS, and the host of the URL must "
    "be a name in the server's certificate",
)
_POSTGRES: Final = Dialect(
    now="EXTRACT(EPOCH FROM clock_timestamp())",
    insert=postgresql.insert,
    connect_args=lambda s: {
        "connect_timeout": max(1, round(s)),
        "tcp_user_timeout": round(s * 1000),
    },
    isolation="READ COMMITTED",
    again=frozenset({"40P01", "40001", "55P03"}),
    full=frozenset({"53100", "53200", "54000"}),
    refused=frozenset({"42501", "25006", "28000", "28P01", "3D000"}),
    parameters=(
        *("sslrootcert", "sslcert", "sslkey", "sslmode", "sslcrl", "channel_binding", "gssencmode", "krbsrvname"),
        *("host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"),
        *("application_name", "options", "target_session_attrs"),
    ),
    tls="the parameters sslrootcert, sslcert and sslkey of the URL name the files for TLS, and the host of the URL "
    "must be a name in the server's certificate",
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
    parameters=("uri", "mode", "cache", "immutable", "nolock", "vfs"),
    wrong_types=(
        *("typeof(value) <> 'blob'", "typeof(cas) <> 'integer'"),
        "typeof(expires_at) NOT IN ('integer', 'null')",
    ),
)
_DIALECTS: Final[Mapping[str, Dialect]] = {
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": _POSTGRES,
    "sqlite": _SQLITE,
}


def dialect_of(url: str) -> tuple[sa.URL, Dialect]:
    """Complete the URL with the driver that nodestate uses, and choose the dialect. Raises ``ConfigError``."""
    try:
        url.encode()
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):  # also of a port that is no number, or of bytes that are not UTF-8
        raise ConfigError(f"sql {safe_url(url)!r} is no URL of a database; give {_EXAMPLES}") from None
    name = parsed.get_backend_name()
    if name not in _DIALECTS:
        raise ConfigError(f"sql {name!r} is no kind of database that nodestate supports; give {_EXAMPLES}")
    dialect = _DIALECTS[name]
    if unknown := [parameter for parameter in parsed.query if parameter not in dialect.parameters]:
        raise ConfigError(
            f"sql {safe_url(url)!r} has parameters after the question mark that nodestate does not know "
            f"({', '.join(unknown)}): remove them; known are {', '.join(dialect.parameters)}"
        )
    if name != "postgresql" and "ssl_ca" not in parsed.query and any(each.startswith("ssl_") for each in parsed.query):
        raise ConfigError(
            f"sql {safe_url(url)!r} has no ssl_ca, without which the driver does not verify the server's certificate: "
            "give the file with the authority's certificate as ssl_ca"
        )
    if "sslrootcert" in parsed.query and "sslmode" not in parsed.query:
        parsed = parsed.update_query_dict({"sslmode": "verify-full"})  # libpq's default verifies nothing
    if "+" not in parsed.drivername:
        parsed = parsed.set(drivername=f"{name}+{DRIVERS[name]}")
    return parsed, dialect


def shown_url(url: sa.URL) -> str:
    """The URL without its password, for messages."""
    return safe_url(url.render_as_string(hide_password=True))


def engine_of(url: str, timeout_s: float, **options: Any) -> sa.Engine:
    """An SQLAlchemy engine with limited waiting times. Its first use connects. Raises ``ConfigError``."""
    parsed, dialect = dialect_of(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigError(f"sql {safe_url(url)!r} exists only within one connection; give sqlite:////path/to/file.db")
    try:
        engine = sa.create_engine(parsed, connect_args=dialect.connect_args(timeout_s), **options)
    except ModuleNotFoundError as error:
        raise ConfigError(f"sql {parsed.drivername} needs its driver ({error}): pip install 'nodestate[sql]'") from None
    if parsed.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _accept_any_text)
    if parsed.drivername == "postgresql+psycopg":
        from nodestate.sql.waiting import connection_with, limit_transaction  # noqa: PLC0415  only it needs psycopg

        def connected(_dialect: object, _record: object, given: Any, named: Any) -> Any:
            return connection_with(timeout_s, *given, **named)

        sa.event.listen(engine, "begin", limit_transaction)
        sa.event.listen(engine, "do_connect", connected)
    return engine


def _accept_any_text(connection: Any, _record: object) -> None:
    """Let one text that is not UTF-8 not fail the whole query of SQLite: a reader asks for many rows at once."""
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")


_EXAMPLES: Final = (
    "mariadb://user:password@host/nodestate, postgresql://user:password@host/nodestate or sqlite:///file.db"
)


def code_of(error: exc.DBAPIError) -> str:
    """The driver's code of an error; empty if it has none."""
    original: Any = error.orig
    first = next(iter(getattr(original, "args", ())), "")
    if isinstance(first, int):  # MariaDB: its number says more than its sqlstate
        return str(first)
    for name in ("sqlstate", "sqlite_errorname"):
        if code := getattr(original, name, None):
            return str(code)
    return str(first)


_ABOUT_TLS: Final = re.compile(r"(?i)certificate|\bssl\b|\btls\b|no encryption")


def meaning_of(error: exc.SQLAlchemyError, dialect: Dialect, url: sa.URL) -> StoreError:
    """Translate a database's error to an error of the store, without the password of the database's URL."""
    server = shown_url(url)
    cause = safe_text(str(getattr(error, "orig", None) or error), url.render_as_string(hide_password=False))
    advice = f"; {dialect.tls}" if dialect.tls and _ABOUT_TLS.search(cause) else ""
    if isinstance(error, exc.DBAPIError):
        code = code_of(error)
        if code in dialect.full:
            return DatabaseFullError(server, cause)
        if code in dialect.refused or dialect.refused_in_words.search(code):
            return StoreRefusedError(server, cause + advice)
    return StoreUnavailableError(server, cause + advice)
