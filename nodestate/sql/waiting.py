"""PostgreSQL's driver with a time limit for answers.

The driver itself waits as long as the server's kernel responds.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final

import psycopg

WAIT_INTERVAL_S: Final = 0.1


class ReadTimeoutConnection(psycopg.Connection[Any]):  # type: ignore[misc]  # Any to mypy, see pyproject.toml
    """A connection that closes itself and raises ``psycopg.OperationalError`` if an answer takes too long."""

    max_wait_s = 10.0
    """Longest time for an answer, in seconds."""

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
    """Connect as ``psycopg.connect`` does, with a limit of ``timeout_s`` seconds for each answer."""
    connection: ReadTimeoutConnection = ReadTimeoutConnection.connect(*arguments, **settings)
    connection.max_wait_s = timeout_s
    return connection
