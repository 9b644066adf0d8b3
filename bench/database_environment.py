"""Environments in a database: a SQLite file, a MariaDB or a PostgreSQL of its own. Needs SQLAlchemy and the drivers."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from bench.baseline import BaselineClient
from bench.baseline_sql import BaselineDatabase
from bench.design_names import DRIVERS, INSTALL_EXTRA, design_label, driver_versions, full_design_name
from bench.environments import Environment
from bench.workload import require
from harness.servers import MariadbServer, PostgresServer, ServerFailedError, ServerMissingError
from nodestate.sql.migrate import upgrade
from nodestate.sql.schema import HEADS, NODES

RESTART_S: Final = 30.0
"""PostgreSQL refuses to start until the last process of the killed server has ended."""
PAUSE_S: Final = 0.2
TABLES: Final = (HEADS.name, NODES.name)


@contextmanager
def open_database_environment(design: str, database: str) -> Iterator[Environment]:
    """Start a database with nodestate's tables. Raises ServerMissingError if server or driver is not installed."""
    try:
        import_module(DRIVERS[database])
    except ImportError as error:
        raise ServerMissingError(f"{error}: {INSTALL_EXTRA}") from error
    if database == "sqlite":
        with tempfile.TemporaryDirectory(prefix="nodestate-bench-") as folder:
            yield _with_tables(
                DatabaseEnvironment(design, database, f"sqlite:///{Path(folder) / 'nodestate.db'}", None)
            )
    else:
        with MariadbServer() if database == "mariadb" else PostgresServer() as server:
            yield _with_tables(DatabaseEnvironment(design, database, server.url, server))


def _with_tables(environment: DatabaseEnvironment) -> DatabaseEnvironment:
    upgrade(environment.settings["sql"])
    return environment


class DatabaseEnvironment:
    """A database that only this environment uses. Implements ``Environment``."""

    def __init__(self, design: str, database: str, url: str, server: MariadbServer | PostgresServer | None) -> None:
        name = full_design_name(f"{design}:{database}")
        self.designs: tuple[str, ...] = (design,)
        self.label = design_label([name])
        self.slug = database
        self.settings: Mapping[str, str] = {"sql": url}
        self.imports: tuple[str, ...] = ("nodestate.sql.store", DRIVERS[database])
        self.baseline: Callable[[], BaselineClient] = partial(BaselineDatabase, url)
        here = server.version if server else sqlite3.sqlite_version
        self.versions: Mapping[str, str] = {database: here, **driver_versions(database)}
        self._server = server
        self._url = url
        self._database = database

    def require_nothing_lost(self, nodes: int) -> str:
        """Require that the database has one row for each node."""
        [[rows]] = self._query(f"SELECT COUNT(*) FROM {NODES.name}")  # noqa: S608 - our own name
        require(rows == nodes, f"{self.label} has {rows:,} rows of {nodes:,} nodes")
        return f"the database has one row for each of {nodes:,} nodes"

    def bytes_sent(self) -> int | None:
        """Return MariaDB's count; None for the others, which do not count."""
        return self._mariadb_status("Bytes_sent")

    def bytes_received(self) -> int | None:
        """Return MariaDB's count; None for the others, which do not count."""
        return self._mariadb_status("Bytes_received")

    def log_bytes(self) -> int | None:
        """Return the bytes written to the log that recovers a crash; None for SQLite, which keeps none."""
        if self._database == "postgres":
            [[position]] = self._query("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
            return int(position)
        return self._mariadb_status("Innodb_os_log_written")

    def bytes_held(self) -> Mapping[str, int]:
        """Return the bytes of tables with their indexes, by the database's own statistics."""
        if self._database == "sqlite":
            [[pages, page_bytes]] = self._query("SELECT page_count, page_size FROM pragma_page_count, pragma_page_size")
            return {"stored": pages * page_bytes}
        if self._database == "postgres":
            sizes = [
                self._query(f"SELECT pg_total_relation_size('{name}'), pg_indexes_size('{name}')")[0] for name in TABLES
            ]
        else:
            self._query(f"ANALYZE TABLE {', '.join(TABLES)}")  # without it, the sizes date from the last analysis
            sizes = self._query(
                "SELECT data_length + index_length, index_length FROM information_schema.tables "  # noqa: S608 - our own
                f"WHERE table_schema = DATABASE() AND table_name IN {TABLES}"
            )
        whole, indexes = (sum(int(size) for size in column) for column in zip(*sizes, strict=True))
        return {"stored": whole, "stored, indexes": indexes}

    def restart(self) -> None:
        """Kill the server and start it again; committed data is there again."""
        assert self._server is not None, "SQLite has no server"
        self._server.kill()
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                self._server.start()
            except ServerFailedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_S)
            else:
                return

    def _mariadb_status(self, name: str) -> int | None:
        if self._database != "mariadb":
            return None
        [[_, value]] = self._query(f"SHOW GLOBAL STATUS LIKE '{name}'")
        return int(value)

    def _query(self, statement: str) -> list[Any]:
        """Run a statement over a connection of its own, so that a killed server breaks no open connection."""
        engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]
