"""Databases for tests: create empty ones on a server, and act on them as an administrator."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from harness.servers import USER, MariadbServer, PostgresServer
from nodestate.sql.schema import HEADS, NODES

Rows = list[dict[str, Any]]
SqlServer = MariadbServer | PostgresServer


def run_sql(url: str, *statements: str) -> list[Any]:
    """Execute statements, each in a transaction of its own; returns the rows of the last one."""
    rows: list[Any] = []
    with connected(url) as connection:
        for statement in statements:
            result = connection.execute(sa.text(statement))
            rows = list(result.all()) if result.returns_rows else []
    return rows


@contextmanager
def connected(url: str, *, isolation: str = "AUTOCOMMIT") -> Iterator[sa.Connection]:
    """Open a connection of an administrator."""
    engine = sa.create_engine(url, isolation_level=isolation)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def create_database(server: SqlServer, *, tablespace: str = "") -> str:
    """Create a database without tables; returns its URL."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    if isinstance(server, MariadbServer):
        run_sql(server.admin_url, f"CREATE DATABASE {name}", f"GRANT ALL ON {name}.* TO '{USER}'@'127.0.0.1'")
    else:
        run_sql(server.admin_url, f"CREATE DATABASE {name}" + (f" TABLESPACE {tablespace}" if tablespace else ""))
    return str(sa.make_url(server.url).set(database=name))


def contents(url: str) -> dict[str, Rows]:
    """Return all rows of nodestate's tables, by table."""
    with connected(url) as connection:
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in (HEADS, NODES)
        }


def put_contents(url: str, held: dict[str, Rows]) -> None:
    """Replace all rows of nodestate's tables in one transaction, as an administrator does who restores a backup."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in (HEADS, NODES):
            connection.execute(sa.delete(table))
            if held.get(table.name):
                connection.execute(sa.insert(table), held[table.name])
    engine.dispose()


class LockedFile:
    """A SQLite file that another connection can lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder: sqlite3.Connection | None = None

    def lock(self) -> None:
        """Lock the file exclusively."""
        self._holder = sqlite3.connect(self._path, isolation_level=None)
        self._holder.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        """Release the lock."""
        if self._holder is not None:
            with closing(self._holder):
                self._holder.rollback()
            self._holder = None


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of this size; yields its folder. Raises PermissionError if this process may not mount."""
    if os.geteuid() != 0:
        raise PermissionError("only root mounts file systems")
    folder.mkdir()
    _run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)])
    try:
        yield folder
    finally:
        _run(["umount", "--lazy", str(folder)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  mount and umount
    if done.returncode != 0:
        raise PermissionError(f"{' '.join(command)}: {done.stderr}")
