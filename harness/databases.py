"""Databases for tests: empty ones on servers of their own kind, and what an administrator does to them."""

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
    """Carry out statements, each for itself; the rows of the last one."""
    rows: list[Any] = []
    with connected(url) as connection:
        for statement in statements:
            result = connection.execute(sa.text(statement))
            rows = list(result.all()) if result.returns_rows else []
    return rows


@contextmanager
def connected(url: str, *, isolation: str = "AUTOCOMMIT") -> Iterator[sa.Connection]:
    """A connection of an administrator's own."""
    engine = sa.create_engine(url, isolation_level=isolation)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def fresh(server: SqlServer, *, tablespace: str = "") -> str:
    """The URL of a new database without tables."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    if isinstance(server, MariadbServer):
        run_sql(server.admin_url, f"CREATE DATABASE {name}", f"GRANT ALL ON {name}.* TO '{USER}'@'127.0.0.1'")
    else:
        run_sql(server.admin_url, f"CREATE DATABASE {name}" + (f" TABLESPACE {tablespace}" if tablespace else ""))
    return str(sa.make_url(server.url).set(database=name))


def contents(url: str) -> dict[str, Rows]:
    """All that nodestate's tables hold."""
    with connected(url) as connection:
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in (HEADS, NODES)
        }


def put_contents(url: str, held: dict[str, Rows]) -> None:
    """Set the tables back to what they held, in one transaction, as a backup that is put in the place of what is there."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for table in (HEADS, NODES):
            connection.execute(sa.delete(table))
            if held.get(table.name):
                connection.execute(sa.insert(table), held[table.name])
    engine.dispose()


class LockedFile:
    """A SQLite file that somebody else holds for themselves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder: sqlite3.Connection | None = None

    def lock(self) -> None:
        """From now on nobody gets in."""
        self._holder = sqlite3.connect(self._path, isolation_level=None)
        self._holder.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        """Let others in."""
        if self._holder is not None:
            with closing(self._holder):
                self._holder.rollback()
            self._holder = None


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A folder on a file system of this size. Raises PermissionError where that may not be made."""
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
