"""Faults of a database: the error says what to do, no event is acked before it is stored, and nothing is lost."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from harness.databases import LockedFile, SqlServer, connected, create_database, run_sql
from harness.servers import MariadbServer, PostgresServer
from nodestate import Reader
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.consumers.store_failures import RETRY_S
from nodestate.consumers.watermarks import is_marker
from nodestate.designs.control import record_from_settings
from nodestate.designs.control_store import ControlStore
from nodestate.errors import SchemaError, StoreRefusedError, StoreUnavailableError
from nodestate.findings.finding import OK
from nodestate.findings.store_checks import examine_database
from nodestate.ports import Put, Write, WriteStatus
from nodestate.sql.migrate import downgrade, upgrade
from nodestate.sql.schema import NODES, REVISION, REVISION_TABLE
from nodestate.sql.store import SqlStore
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryBroker
from tests.contract.store import ALL, asked, node_row, records, retried, with_rows

TIMEOUTS_S = {"sqlite": 0.1, "postgresql": 0.5, "mysql": 1.2}  # MariaDB waits a second for a lock, or not at all
NODES_COUNT = 3


@dataclass
class Database:
    """A database with nodestate's tables, and the rights of its administrator."""

    url: str
    server: SqlServer | None = None

    @property
    def timeout_s(self) -> float:
        return TIMEOUTS_S[sa.make_url(self.url).get_backend_name()]

    def store(self, **different: str) -> SqlStore:
        url = sa.make_url(self.url).set(**different)  # type: ignore[arg-type]
        return SqlStore(url.render_as_string(hide_password=False), timeout_s=self.timeout_s)

    def admin(self, *statements: str) -> list[Any]:
        if self.server is None:
            return run_sql(self.url, *statements)
        name = sa.make_url(self.url).database
        return run_sql(str(sa.make_url(self.server.admin_url).set(database=name)), *statements)

    def hang_up(self) -> None:
        """End all connections of PostgreSQL, so that clients connect again."""
        if isinstance(self.server, PostgresServer):
            self.admin(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


SQLITE = "sqlite"
SERVERS = [pytest.param(name, marks=pytest.mark.service) for name in ("mariadb", "postgres")]
FEW_SERVERS = [
    pytest.param("mariadb", marks=pytest.mark.service),
    pytest.param("postgres", marks=[pytest.mark.service, pytest.mark.thorough]),
]
"""For faults that a test repeats over and over: PostgreSQL in the thorough runs only."""


@pytest.fixture(params=[SQLITE, *SERVERS])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return made(request, request.param, tmp_path)


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A database on a server."""
    return made(request, request.param, tmp_path)


@pytest.fixture(params=FEW_SERVERS)
def faulty_server(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A database on a server that the test stops, kills or freezes."""
    return made(request, request.param, tmp_path)


def made(request: pytest.FixtureRequest, kind: str, folder: Path) -> Database:
    if kind == SQLITE:
        made = Database(f"sqlite:///{folder}/state.db")
    else:
        server = request.getfixturevalue(kind)
        made = Database(create_database(server), server)
    upgrade(made.url)
    return made


@pytest.fixture
def store(database: Database) -> Iterator[SqlStore]:
    store = database.store()
    yield store
    store.close()


@pytest.fixture
def served_store(served: Database) -> Iterator[SqlStore]:
    store = served.store()
    yield store
    store.close()


# -- faults ---------------------------------------------------------------------------------------


@contextmanager
def unreachable(database: Database) -> Iterator[None]:
    """The server is stopped."""
    assert database.server is not None
    database.server.stop()
    try:
        yield
    finally:
        database.server.start()


@contextmanager
def killed(database: Database) -> Iterator[None]:
    """The server is killed by SIGKILL."""
    assert database.server is not None
    database.server.kill()
    try:
        yield
    finally:
        database.server.start()


@contextmanager
def frozen(database: Database) -> Iterator[None]:
    """The server accepts bytes and answers nothing."""
    assert database.server is not None
    database.server.pause()
    try:
        yield
    finally:
        database.server.resume()


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    """Writes are refused, as for a user who may only read, or on a replica."""
    if isinstance(database.server, MariadbServer):
        database.admin("SET GLOBAL read_only = 1")
    else:
        name = sa.make_url(database.url).database
        database.admin(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        database.hang_up()
    try:
        yield
    finally:
        if isinstance(database.server, MariadbServer):
            database.admin("SET GLOBAL read_only = 0")
        else:
            database.admin(
                "SET default_transaction_read_only = off",
                f"ALTER DATABASE {name} SET default_transaction_read_only = off",
            )
            database.hang_up()


@contextmanager
def without_tables(database: Database) -> Iterator[None]:
    """The tables are gone."""
    downgrade(database.url, "base")
    yield
    upgrade(database.url)


@contextmanager
def of_another_revision(database: Database) -> Iterator[None]:
    """The tables have the revision of a newer version of nodestate."""
    statement = f"UPDATE {REVISION_TABLE} SET version_num = "  # noqa: S608
    database.admin(f"{statement} '9999'")
    restart_connections(database)
    yield
    database.admin(f"{statement} '{REVISION}'")


def restart_connections(database: Database) -> None:
    """Restart the server: a store asks for the revision once per connection, as an upgrade happens while the cell
    is stopped.
    """
    if database.server is not None:
        database.server.restart()


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another connection holds a lock on all rows."""
    if database.server is None:
        file = LockedFile(Path(str(sa.make_url(database.url).database)))
        file.lock()
        yield
        file.release()
        return
    with connected(database.url, isolation="READ COMMITTED") as connection:
        for table in ("nodestate_heads", "nodestate_nodes"):
            connection.execute(sa.text(f"SELECT * FROM {table} FOR UPDATE"))  # noqa: S608
        yield
        connection.rollback()


DatabaseFault = Callable[[Database], AbstractContextManager[None]]
EVERYWHERE: list[tuple[DatabaseFault, str]] = [
    (without_tables, r"nodestate sql upgrade|no such table|doesn't exist|does not exist"),
    (locked, r"does not answer: .*(lock|database is locked|timeout)"),
]
WITH_A_SERVER: list[tuple[DatabaseFault, str]] = [
    (read_only, r"refuses: .*The user must be able to SELECT, INSERT, UPDATE and DELETE"),
    (unreachable, r"does not answer: .*(refused|Can't connect|terminating|Lost connection)"),
    (killed, r"does not answer: .*(refused|Can't connect|closed|terminat|Lost connection)"),
    (frozen, r"does not answer: .*(timed out|timeout|no answer)"),
    (of_another_revision, r"does not answer|revision 9999, and this version needs"),
]


# -- the store ------------------------------------------------------------------------------------


def by_name(case: Any) -> str:
    return getattr(case, "__name__", "")


@pytest.mark.parametrize(("fault", "said"), EVERYWHERE, ids=by_name)
def test_fault_is_an_error_that_names_its_cause(
    database: Database, store: SqlStore, fault: DatabaseFault, said: str
) -> None:
    """The error comes within the timeout and without the password; after the fault the stored rows are still there."""
    check_fault(database, store, fault, said)


@pytest.mark.parametrize(("fault", "said"), WITH_A_SERVER, ids=by_name)
def test_fault_of_a_server_is_an_error_that_names_its_cause(
    faulty_server: Database, fault: DatabaseFault, said: str
) -> None:
    """The same, for faults that only a server has."""
    store = faulty_server.store()
    check_fault(faulty_server, store, fault, said)
    store.close()


def check_fault(database: Database, store: SqlStore, fault: DatabaseFault, said: str) -> None:
    rows = (node_row(0), node_row(1))
    [before] = store.write([with_rows(*rows)])
    with fault(database):
        told = []
        for _ in range(2):  # the first may only find its connection broken
            with pytest.raises((StoreUnavailableError, StoreRefusedError, SchemaError)) as caught:
                store.write([with_rows(node_row(0, 1, zone="new"), put=Put.CAS, cas=before.cas)])
            told.append(str(caught.value))
        assert re.search(said, told[-1]), told
    store = retried(store)
    if fault is without_tables:
        assert store.fetch(["head"]) == {}
        return
    assert asked(store, ALL) == (0, records(*rows))
    [written] = store.write([with_rows(node_row(0, 1, zone="new"), put=Put.CAS, cas=before.cas)])
    assert written.status is WriteStatus.STORED


def test_read_from_a_frozen_server_fails_instead_of_waiting(faulty_server: Database) -> None:
    """A scheduler's refresh must not hang with a database whose disk hangs, also not on an open connection."""
    store = faulty_server.store()
    store.write([Write(Put.ADD, "a", b"1")])
    assert store.fetch(["a"])["a"].value == b"1"
    with frozen(faulty_server):
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                store.fetch(["a"])
    assert store.fetch(["a"])["a"].value == b"1"
    store.close()


def test_wrong_password_is_an_error_that_names_the_user(served: Database) -> None:
    """The error does not contain the password."""
    assert served.server is not None
    if isinstance(served.server, MariadbServer):
        served.admin("CREATE OR REPLACE USER 'limited'@'127.0.0.1' IDENTIFIED BY 'right'")
    else:
        served.admin("DROP ROLE IF EXISTS limited", "CREATE ROLE limited LOGIN PASSWORD 'right'")
        rules = Path(served.admin("SHOW hba_file")[0][0])
        rules.write_text("host all limited 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        served.admin("SELECT pg_reload_conf()")
    store = served.store(username="limited", password="wrong-secret")  # noqa: S106
    with pytest.raises(StoreRefusedError) as caught:
        store.fetch(["a"])
    assert "limited" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


def test_user_who_may_only_read_can_read_and_is_refused_each_write(served: Database, served_store: SqlStore) -> None:
    """A scheduler needs no more rights than that."""
    row = node_row(0)
    served_store.write([with_rows(row)])
    if isinstance(served.server, MariadbServer):
        name = sa.make_url(served.url).database
        served.admin("CREATE OR REPLACE USER 'reads'@'127.0.0.1'", f"GRANT SELECT ON {name}.* TO 'reads'@'127.0.0.1'")
    else:
        served.admin(
            "DO $$ BEGIN CREATE ROLE reads LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reads",
        )
    store = served.store(username="reads")
    assert asked(store, ALL) == (0, records(row))
    for write in (Write(Put.ADD, "a", b"1"), Write(Put.DELETE, "head"), with_rows(row, put=Put.CAS, cas=1)):
        with pytest.raises(StoreRefusedError):
            store.write([write])
    assert asked(store, ALL) == (0, records(row))
    store.close()


def test_the_doctor_names_a_database_that_can_be_read_but_not_written(faulty_server: Database) -> None:
    """Regression: views and designs looked well, and nothing said why no consumer could write."""
    config = Config(sql=faulty_server.url)
    assert [finding.level for finding in examine_database(config)] == [OK]
    store = faulty_server.store()
    records = ControlStore(config.cell, Stores([], store))
    with read_only(faulty_server):
        for attempt in (
            lambda: examine_database(config),
            lambda: records.begin(record_from_settings(config, 0.0), records.read()),
        ):
            with pytest.raises(StoreRefusedError, match="must not be read-only"):
                attempt()
    assert [finding.level for finding in examine_database(config)] == [OK]
    store.close()


def test_database_that_does_not_exist_is_named_in_the_error(served: Database) -> None:
    store = served.store(database="nowhere")
    with pytest.raises(StoreRefusedError, match="nowhere"):
        store.fetch(["a"])


def test_owners_that_advance_the_same_heads_in_different_orders_all_succeed(served: Database) -> None:
    """The database rolls one transaction of a deadlock back; the store repeats it, so each advance happens
    exactly once.
    """
    heads = [f"head-{n}" for n in range(6)]
    first = SqlStore(served.url, timeout_s=5.0)
    first.write([Write(Put.ADD, key, b"0") for key in heads])
    first.close()
    stored: dict[int, list[int]] = {}
    failures: list[BaseException] = []

    def move(seed: int) -> None:
        store, order = SqlStore(served.url, timeout_s=5.0), random.Random(seed)
        stored[seed] = [0] * len(heads)
        try:
            for _ in range(6):
                found = store.fetch(heads)
                writes = [Write(Put.CAS, key, str(int(found[key].value) + 1).encode(), found[key].cas) for key in heads]
                order.shuffle(writes)
                for write, outcome in zip(writes, store.write(writes), strict=True):
                    stored[seed][heads.index(write.key)] += outcome.status is WriteStatus.STORED
        except BaseException as error:  # noqa: BLE001  shown below
            failures.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=move, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    last = SqlStore(served.url, timeout_s=5.0)
    counted = [int(last.fetch([key])[key].value) for key in heads]
    assert counted == [sum(moved[n] for moved in stored.values()) for n in range(len(heads))]
    last.close()


def test_read_only_sqlite_file_is_read_and_refuses_writes(tmp_path: Path) -> None:
    """SQLite has no users: the rights of the file decide."""
    path = f"sqlite:///{tmp_path}/state.db"
    upgrade(path)
    row = node_row(0)
    writer = SqlStore(path, timeout_s=1.0)
    writer.write([with_rows(row)])
    writer.close()
    store = SqlStore(f"sqlite:///file:{tmp_path}/state.db?mode=ro&uri=true", timeout_s=1.0)
    assert asked(store, ALL) == (0, records(row))
    with pytest.raises(StoreRefusedError, match="readonly"):
        store.write([Write(Put.ADD, "a", b"1")])
    store.close()
    with pytest.raises(StoreRefusedError, match="unable to open"):
        SqlStore(f"sqlite:///{tmp_path}/no/such/folder/state.db", timeout_s=1.0).fetch(["a"])


def test_store_can_be_used_from_several_threads_in_turn(store: SqlStore) -> None:
    """A reader may be used by several threads, one at a time."""
    store.write([Write(Put.ADD, "a", b"1")])
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(store.fetch(["a"])["a"].value)) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert found == [b"1"] * 3


# -- a cell ---------------------------------------------------------------------------------------


class DatabaseCell:
    """A cell of one partition on a real database: one consumer, a reader, and nodes that report."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = ManualClock()
        self.broker = MemoryBroker(1, clock=self.clock)
        self.config = Config(
            partitions=1, designs=("sql",), read_design="sql", heartbeat_s=1.0, resync_jitter_s=0.0, sql=database.url
        )
        self.stores = [self._store(), self._store()]
        self.consumer = Consumer(
            self.config,
            self.broker.source([0]),
            Stores((), self.stores[0]),
            self.broker,
            self.clock,
            random.Random(1),
            "m",
        )
        self.reader = Reader(self.config, design="sql", stores=Stores((), self.stores[1]), clock=self.clock)
        self._sink = self.broker.sink()
        self._incarnation = int(self.clock.time())
        self.generation = 0
        self.publish()
        self.step(8)

    def _store(self) -> SqlStore:
        """A store whose times to live count from the write: the database's clock is not that of the consumer."""
        store = self.database.store()
        write = store.write
        store.write = lambda writes: write([each._replace(as_of=None) for each in writes])  # type: ignore[method-assign]  # of this object alone
        return store

    def publish(self) -> None:
        """Let all nodes report another state."""
        self.generation += 1
        for number in range(NODES_COUNT):
            report = {"kind": "report", "node": f"n{number}", "state": {"usage": {"VCPU": self.generation}}}
            stamp = {"incarnation": self._incarnation, "generation": self.generation, "reported_at": self.clock.time()}
            self._sink.publish(0, msgspec.msgpack.encode(report | stamp), lambda _ok: None)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.consumer.step()
            self.clock.advance(max(0.5, RETRY_S))

    def unacked(self) -> int:
        """Return how many events wait in the queue or are not acked by the consumer."""
        bodies = [
            message.body for source in self.broker.queue(0).consumers for message in source._unacked.get(0, {}).values()
        ]
        return len([body for body in (*bodies, *self.broker.queued(0)) if not is_marker(body)])

    def seen(self) -> dict[str, int]:
        """Return the usage of each node that a scheduler reads with a bound of five seconds."""
        view = self.reader.read(max_age=5.0, on_stale="refuse")
        assert view.incomplete == frozenset()
        return {name: node.state["usage"]["VCPU"] for name, node in view.nodes.items()}

    def close(self) -> None:
        for store in self.stores:
            store.close()


def all_at(generation: int) -> dict[str, int]:
    return {f"n{number}": generation for number in range(NODES_COUNT)}


@pytest.fixture
def cell_on(database: Database) -> Iterator[DatabaseCell]:
    cell = DatabaseCell(database)
    yield cell
    cell.close()


@pytest.fixture
def cell_on_faulty_server(faulty_server: Database) -> Iterator[DatabaseCell]:
    cell = DatabaseCell(faulty_server)
    yield cell
    cell.close()


@pytest.mark.parametrize(("fault", "said"), EVERYWHERE, ids=by_name)
def test_consumer_acks_nothing_during_a_fault_and_goes_on_after_it(
    cell_on: DatabaseCell, fault: DatabaseFault, said: str
) -> None:
    """I6: the queue keeps the events; the log names the cause once; no operator has to help."""
    check_consumer(cell_on, fault, said)


@pytest.mark.parametrize(("fault", "said"), WITH_A_SERVER, ids=by_name)
def test_consumer_acks_nothing_while_its_database_server_fails(
    cell_on_faulty_server: DatabaseCell, fault: DatabaseFault, said: str
) -> None:
    """The same, for faults that only a server has."""
    check_consumer(cell_on_faulty_server, fault, said)


def check_consumer(cell: DatabaseCell, fault: DatabaseFault, said: str) -> None:
    assert cell.seen() == all_at(1)
    with fault(cell.database), capture_logs() as told:
        cell.publish()
        cell.step(2)
        assert cell.unacked() == NODES_COUNT
        cell.clock.advance(60)
        stale = cell.reader.read(max_age=5.0, on_stale="flag")
        assert stale.stale == set(all_at(1)), "the view ages and stays"
    assert any(re.search(said, line.get("reason", "")) for line in told), told
    cell.publish()
    cell.step(12)
    assert cell.unacked() == 0
    assert cell.seen() == all_at(3)
    assert cell.broker.dead_letters == []


@pytest.mark.service
def test_database_that_is_killed_during_commits_loses_no_acked_event(cell_on_faulty_server: DatabaseCell) -> None:
    """I6 and I1: acked events are there when the database is back; the other events are delivered again and count
    once.
    """
    cell, server = cell_on_faulty_server, cell_on_faulty_server.database.server
    assert server is not None
    ended = threading.Event()

    def kill() -> None:
        for _ in range(2):
            time.sleep(0.15)
            server.kill()
            server.start()
        ended.set()

    killer = threading.Thread(target=kill)
    killer.start()
    last = 0
    while not ended.is_set():
        cell.publish()
        cell.step()
        view = cell.reader.read(max_age=1e9, on_stale="flag")
        newest = min((node.state["usage"]["VCPU"] for node in view.nodes.values()), default=last)
        assert newest >= last
        last = newest
    killer.join()
    cell.step(8)
    assert cell.unacked() == 0
    assert cell.seen() == all_at(cell.generation)
    assert cell.consumer.stats.epochs_begun == 1, "an epoch was begun although nothing was lost"


@pytest.mark.parametrize("what", ["torn", "deleted"])
def test_damaged_row_is_a_loss_to_new_readers_until_its_owner_writes_it_again(cell_on: DatabaseCell, what: str) -> None:
    """I5: a row that cannot be read or is missing is a loss; its owner has it in memory."""
    place = keys.prefix("cell1", 1, 0, keys.DATABASE)
    spoilt = NODES.c.place == place, NODES.c.slot == 1
    with connected(cell_on.database.url) as connection:
        if what == "torn":
            connection.execute(sa.update(NODES).where(*spoilt).values(record=b"\xc1spoilt"))
        else:
            connection.execute(sa.delete(NODES).where(*spoilt))
    late = Reader(cell_on.config, design="sql", stores=Stores((), cell_on.stores[1]), clock=cell_on.clock)
    view = late.read(max_age=1e9, on_stale="flag")
    assert ("partition 0" in view.incomplete, len(view.nodes)) == (True, 0)
    cell_on.step(6)
    view = late.read(max_age=5.0)
    assert (sorted(view.nodes), view.incomplete) == (sorted(all_at(1)), frozenset())
