"""PostgreSQL's driver with a time limit for answers.

The driver itself waits as long as the server's kernel responds.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final

import psycopg
import sqlalchemy as sa

WAIT_INTERVAL_S: Final = 0.1
SERVER_LIMIT_RATIO: Final = 0.8
"""The server's limit for a statement or a lock, as a part of this side's limit."""


class ReadTimeoutConnection(psycopg.Connection[Any]):  # type: ignore[misc]  # Any to mypy, see pyproject.toml
    """A connection that closes itself and raises ``psycopg.OperationalError`` if an answer takes too long."""

    max_wait_s = 10.0
    """Longest time for an answer, in seconds."""
    pooled_limits = ""
    """The statement that limits a transaction behind a pooler; empty if the connection leads to the server itself.

    Each transaction of a pooled connection may have another session of the server, and other clients use the session
    next. So limits of the session, and statements that were prepared in it, would reach other clients. The
    process id that the connection was given tells a pooler from a server: it is not that of the session.
    """

    def wait(self, gen: Generator[Any, Any, Any], interval: float = WAIT_INTERVAL_S) -> Any:
        """See ``psycopg.Connection``."""
        return super().wait(self._bounded(gen), interval)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        until = time.monotonic() + self.max_wait_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {self.max_wait_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as stop:
            return stop.value


def connection_with(timeout_s: float, *arguments: Any, **settings: Any) -> ReadTimeoutConnection:
    """Connect as ``psycopg.connect`` does, with a limit of ``timeout_s`` seconds for each answer.

    The server's own limits are a little shorter, because a server that gives up says why. They are set after the
    connect: a pooler such as PgBouncer refuses a connection that names them at its start.
    """
    connection: ReadTimeoutConnection = ReadTimeoutConnection.connect(*arguments, **settings)
    connection.max_wait_s = timeout_s
    limit_ms = round(timeout_s * SERVER_LIMIT_RATIO * 1000)
    limits = f"statement_timeout = {limit_ms}; SET {{scope}} lock_timeout = {limit_ms}"
    try:
        connection.autocommit = True
        [server_pid] = connection.execute("SELECT pg_backend_pid()").fetchone()
        if server_pid == connection.info.backend_pid:
            connection.execute(f"SET SESSION {limits.format(scope='SESSION')}")
        else:
            connection.pooled_limits = f"SET LOCAL {limits.format(scope='LOCAL')}"
            connection.prepare_threshold = None
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    return connection


def limit_transaction(connection: sa.Connection) -> None:
    """Set the server's limits for a transaction that begins, if a pooler stands before the server."""
    driver: Any = connection.connection.driver_connection
    if driver.pooled_limits and not driver.autocommit:
        connection.exec_driver_sql(driver.pooled_limits)
