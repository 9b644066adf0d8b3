"""Places in a database: a SQLite file, a MariaDB or a PostgreSQL of its own. Needs SQLAlchemy and the drivers."""

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

from bench.baseline import Bare
from bench.baseline_sql import BareDatabase
from bench.environments import DRIVERS, EXTRA, Place, canonical, driver_versions, label_of
from bench.workload import require
from harness.servers import MariadbServer, PostgresServer, ServerFailedError, ServerMissingError
from nodestate.sql.migrate import upgrade
from nodestate.sql.schema import HEADS, NODES

RESTART_S: Final = 30.0
"""PostgreSQL does not start before the last process of the one that was killed has noticed."""
PAUSE_S: Final = 0.2
TABLES: Final = (HEADS.name, NODES.name)

Count = Callable[[Any], int | None]


@contextmanager
def opened(design: str, database: str) -> Iterator[Place]:
    """A database with nodestate's tables. Raises ServerMissingError."""
    try:
        import_module(DRIVERS[database])
    except ImportError as error:
        raise ServerMissingError(f"{error}: {EXTRA}") from error
    if database == "sqlite":
        with tempfile.TemporaryDirectory(prefix="nodestate-bench-") as folder:
            yield _filled(DatabasePlace(design, database, f"sqlite:///{Path(folder) / 'nodestate.db'}", None))
    else:
        with MariadbServer() if database == "mariadb" else PostgresServer() as server:
            yield _filled(DatabasePlace(design, database, server.url, server))


def _filled(place: DatabasePlace) -> DatabasePlace:
    upgrade(place.settings["sql"])
    return place


class DatabasePlace:
    """One database that nobody else uses."""

    def __init__(self, design: str, database: str, url: str, server: MariadbServer | PostgresServer | None) -> None:
        name = canonical(f"{design}:{database}")
        self.designs: tuple[str, ...] = (design,)
        self.label = label_of([name])
        self.slug = database
        self.settings: Mapping[str, str] = {"sql": url}
        self.imports: tuple[str, ...] = ("nodestate.sql.store", DRIVERS[database])
        self.bare: Callable[[], Bare] = partial(BareDatabase, url)
        here = server.version if server else sqlite3.sqlite_version
        self.versions: Mapping[str, str] = {database: here, **driver_versions(database)}
        self._server = server
        self._url = url
        self._database = database

    def kept(self, nodes: int) -> str:
        """It has one row for each node."""
        [[rows]] = self._asked(f"SELECT COUNT(*) FROM {NODES.name}")  # noqa: S608 - our own name
        require(rows == nodes, f"{self.label} has {rows:,} rows of {nodes:,} nodes")
        return f"the database has one row for each of {nodes:,} nodes"

    def sent(self) -> int | None:
        """See ``Place``. Only MariaDB counts."""
        return self._status("Bytes_sent")

    def received(self) -> int | None:
        """See ``Place``. Only MariaDB counts."""
        return self._status("Bytes_received")

    def logged(self) -> int | None:
        """What was written to the log that a crash is recovered from. SQLite keeps none."""
        if self._database == "postgres":
            [[position]] = self._asked("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
            return int(position)
        return self._status("Innodb_os_log_written")

    def held(self) -> Mapping[str, int]:
        """Tables with their indexes, by the database's own statistics."""
        if self._database == "sqlite":
            [[pages, page_bytes]] = self._asked("SELECT page_count, page_size FROM pragma_page_count, pragma_page_size")
            return {"stored": pages * page_bytes}
        if self._database == "postgres":
            sizes = [
                self._asked(f"SELECT pg_total_relation_size('{name}'), pg_indexes_size('{name}')")[0] for name in TABLES
            ]
        else:
            self._asked(f"ANALYZE TABLE {', '.join(TABLES)}")  # or the sizes are those of the last time that it did
            sizes = self._asked(
                "SELECT data_length + index_length, index_length FROM information_schema.tables "  # noqa: S608 - our own
                f"WHERE table_schema = DATABASE() AND table_name IN {TABLES}"
            )
        whole, indexes = (sum(int(size) for size in column) for column in zip(*sizes, strict=True))
        return {"stored": whole, "stored, indexes": indexes}

    def restart(self) -> None:
        """Kill -9. What was committed is there again."""
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

    def _status(self, name: str) -> int | None:
        if self._database != "mariadb":
            return None
        [[_, value]] = self._asked(f"SHOW GLOBAL STATUS LIKE '{name}'")
        return int(value)

    def _asked(self, question: str) -> list[Any]:
        """By a connection of its own: none may be left that a killed server closes."""
        engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(question)]
