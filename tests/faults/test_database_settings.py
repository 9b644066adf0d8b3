"""Databases whose settings differ from the defaults: engines, binary logs, time zones, and poolers before them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from harness.databases import connected, create_database, run_sql
from harness.servers import MariadbServer, PgbouncerServer, PostgresServer, ServerMissingError
from nodestate.errors import SchemaError, StoreRefusedError, StoreUnavailableError
from nodestate.ports import Put, RowQuery, RowSelection, Write, WriteStatus
from nodestate.sql import dialects, migrate, waiting
from nodestate.sql.store import SqlStore
from tests.conftest import skip_or_fail

pytestmark = pytest.mark.service

REPEATED_HOUR = (1_761_438_600, 1_761_442_200)
"""2025-10-26 02:30 in Berlin, in summer time and an hour later in winter time."""


@contextmanager
def default_engine(server: MariadbServer, engine: str) -> Iterator[None]:
    run_sql(server.admin_url, f"SET GLOBAL default_storage_engine = {engine}")
    try:
        yield
    finally:
        run_sql(server.admin_url, "SET GLOBAL default_storage_engine = InnoDB")


def engines(url: str) -> set[str]:
    return {
        engine
        for (engine,) in run_sql(url, "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE()")
    }


def test_tables_have_transactions_whatever_the_default_engine_is(mariadb: MariadbServer) -> None:
    """Regression: with MyISAM as default engine, commits were no transactions, and nothing said so."""
    url = create_database(mariadb)
    with default_engine(mariadb, "MyISAM"):
        migrate.upgrade(url)
    assert engines(url) == {"InnoDB"}


@pytest.mark.thorough
def test_tables_that_an_earlier_version_made_without_transactions_are_refused_until_an_upgrade(
    mariadb: MariadbServer,
) -> None:
    url = create_database(mariadb)
    migrate.upgrade(url)
    run_sql(url, "ALTER TABLE nodestate_heads ENGINE = MyISAM")
    with closing(SqlStore(url, timeout_s=10.0)) as store:
        with pytest.raises(SchemaError, match=r"nodestate_heads have an engine .* sql upgrade"):
            store.fetch(["a"])
        migrate.upgrade(url)
        assert store.fetch(["a"]) == {}
    assert engines(url) == {"InnoDB"}


class _Answer(SimpleNamespace):
    """A connection that has these variables."""

    def execute(self, _statement: object) -> list[tuple[str, str]]:
        return list(self.variables.items())


@pytest.mark.parametrize(
    ("log_bin", "binlog_format", "refused"),
    [("ON", "STATEMENT", True), ("ON", "ROW", False), ("ON", "MIXED", False), ("OFF", "STATEMENT", False)],
)
def test_an_upgrade_refuses_a_binary_log_that_would_refuse_all_writes(
    log_bin: str, binlog_format: str, refused: bool
) -> None:
    connection: Any = _Answer(variables={"log_bin": log_bin, "binlog_format": binlog_format})
    if refused:
        with pytest.raises(SchemaError, match="binlog_format = ROW"):
            migrate._require_row_log(connection, "here")
    else:
        migrate._require_row_log(connection, "here")


@pytest.mark.thorough
def test_an_upgrade_of_a_server_with_a_statement_based_binary_log_changes_nothing() -> None:
    """Regression: the upgrade succeeded, and then every write failed."""
    try:
        server = MariadbServer(extra=["--log-bin", "--server-id=1", "--binlog-format=STATEMENT"])
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        url = create_database(server)
        with pytest.raises(SchemaError, match="binlog_format"):
            migrate.upgrade(url)
        assert migrate.revision_of(url) is None
        run_sql(server.admin_url, "SET GLOBAL binlog_format = ROW")
        migrate.upgrade(url)
        run_sql(server.admin_url, "SET GLOBAL binlog_format = STATEMENT")
        with closing(SqlStore(url, timeout_s=10.0)) as store, pytest.raises(StoreRefusedError, match="BINLOG_FORMAT"):
            store.write([Write(Put.ADD, "a", b"1")])


def test_the_clock_of_mariadb_is_right_in_the_hour_that_summer_time_repeats(mariadb: MariadbServer) -> None:
    """Regression: heads expired an hour early or late, for that hour."""
    rules = subprocess.run(
        ["mariadb-tzinfo-to-sql", "/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"],  # noqa: S607 - of the server
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with connected(mariadb.admin_url) as connection:
        connection.exec_driver_sql("USE mysql")
        for statement in rules.split(";\n"):
            if statement.strip() and not statement.lstrip().startswith(("\\d", "--", "|")):
                connection.exec_driver_sql(statement.replace("%", "%%"))
        connection.exec_driver_sql("SET SESSION time_zone = 'Europe/Berlin'")
        for moment in REPEATED_HOUR:
            connection.exec_driver_sql(f"SET SESSION timestamp = {moment}.25")
            said = connection.execute(sa.text(f"SELECT {dialects._MYSQL.now}")).scalar_one()
            assert float(said) == moment + 0.25


# -- a pooler -------------------------------------------------------------------------------------


class _PoolerConnection(SimpleNamespace):
    """A connection of psycopg that a pooler answers: the process id of its start is none of a session."""

    @classmethod
    def connect(cls, **settings: Any) -> Any:
        return cls(settings=settings, info=SimpleNamespace(backend_pid=cls.given), said=[], prepare_threshold=5)

    def execute(self, statement: str) -> Any:
        self.said.append(statement)
        return SimpleNamespace(fetchone=lambda: (7,))

    given = 0


@pytest.mark.parametrize("pooled", [True, False])
def test_limits_and_prepared_statements_stay_within_a_transaction_behind_a_pooler(
    pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next transaction may have another session, and the next client this one."""
    monkeypatch.setattr(_PoolerConnection, "given", 8 if pooled else 7)
    monkeypatch.setattr(_PoolerConnection, "pooled_limits", "", raising=False)
    monkeypatch.setattr(waiting, "ReadTimeoutConnection", _PoolerConnection)
    connection: Any = waiting.connection_with(10.0, host="h")
    assert connection.settings == {"host": "h"}
    assert (connection.prepare_threshold is None) == pooled
    assert [said for said in connection.said if "SET" in said] == (
        [] if pooled else ["SET SESSION statement_timeout = 8000; SET SESSION lock_timeout = 8000"]
    )
    assert connection.pooled_limits == (
        "SET LOCAL statement_timeout = 8000; SET LOCAL lock_timeout = 8000" if pooled else ""
    )


@pytest.fixture(params=["transaction", "session"])
def pooler(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[PgbouncerServer]:
    try:
        server = PgbouncerServer(postgres, pool_mode=request.param)
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield server


@pytest.mark.thorough
def test_stores_behind_a_pooler_work_side_by_side(pooler: PgbouncerServer, postgres: PostgresServer) -> None:
    """Regression: PgBouncer refused the connection for its limits, and then statements that another client prepared."""
    name = sa.make_url(create_database(postgres)).database
    url = str(sa.make_url(pooler.url).set(database=name))
    migrate.upgrade(url)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with closing(SqlStore(url, timeout_s=30.0)) as store:
                [written] = store.write([Write(Put.ADD, f"k{number}", b"0")])
                for count in range(1, 60):
                    [written] = store.write([Write(Put.CAS, f"k{number}", b"%d" % count, written.cas)])
                    assert written.status is WriteStatus.STORED
                    query = RowQuery(f"p{number}", 1, RowSelection.ALL)
                    assert store.fetch([f"k{number}", query])[f"k{number}"].value == b"%d" % count
        except BaseException as error:  # noqa: BLE001 - the main thread reports it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.thorough
def test_a_transaction_behind_a_pooler_waits_no_longer_for_a_lock_than_its_limit(
    pooler: PgbouncerServer, postgres: PostgresServer
) -> None:
    """And the limit is that of the transaction: no session of the server keeps it."""
    direct = create_database(postgres)
    url = str(sa.make_url(pooler.url).set(database=sa.make_url(direct).database))
    migrate.upgrade(url)
    with closing(SqlStore(url, timeout_s=1.0)) as store:
        [first] = store.write([Write(Put.ADD, "a", b"1")])
        with connected(direct, isolation="READ COMMITTED") as other, other.begin():
            other.execute(sa.text("SELECT * FROM nodestate_heads FOR UPDATE"))
            with pytest.raises(StoreUnavailableError, match=r"lock timeout|statement timeout"):
                store.write([Write(Put.CAS, "a", b"2", first.cas)])
        assert run_sql(url, "SHOW lock_timeout") == [("0",)]
