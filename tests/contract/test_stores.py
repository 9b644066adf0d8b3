"""The store contracts over all stores, and comparisons of the doubles with memcached and SQLite."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.pool import Pool

from harness.databases import LockedFile, Rows, SqlServer, contents, create_database, put_contents, run_sql, small_disk
from harness.servers import MariadbServer, MemcachedServer, PostgresServer
from nodestate.config import Config
from nodestate.errors import StoreUnavailableError
from nodestate.ports import ClaimStore, Item, Put, Store, SystemClock, Write, WriteResult, WriteStatus
from nodestate.sql.migrate import upgrade
from nodestate.sql.store import SqlStore
from nodestate.store.breaker import ClaimBreaker
from nodestate.store.memcached import MemcachedStore, open_stores
from nodestate.store.signed_values import SignedStore, ValueAuth, ValueCounts
from nodestate.testing import Fault, FaultyStore, ManualClock, MemoryDatabase, MemoryServer, MemoryStore, chance, script
from tests.cell_keys import FixedKeyring, new_cell_keys
from tests.contract.store import NEVER_GIVEN, ClaimStoreContract, DatabaseContract, MemcachedContract

FULL_MB = 8


class InMemory:
    """A ``MemoryServer`` as a ``contract.store.Server``."""

    def __init__(self, wrap: Callable[[Store], Store], *, full: bool = False) -> None:
        self._clock = ManualClock()
        self._server = MemoryServer(clock=self._clock, max_bytes=FULL_MB * 1024**2 if full else None, no_evict=full)
        self._wrap = wrap
        self.stop, self.start = self._server.stop, self._server.start
        self.restart, self.flush, self.wait = self._server.restart, self._server.flush, self._clock.advance

    def connect(self) -> Store:
        return self._wrap(MemoryStore(self._server, SystemClock()))


class TestMemoryStore(MemcachedContract):
    @pytest.fixture
    def server(self) -> InMemory:
        return InMemory(lambda store: store)

    @pytest.fixture
    def full_server(self) -> InMemory:
        return InMemory(lambda store: store, full=True)


class TestFaultyStoreWithoutFaults(MemcachedContract):
    @pytest.fixture
    def server(self) -> InMemory:
        return InMemory(lambda store: FaultyStore(store, script()))

    @pytest.fixture
    def full_server(self) -> InMemory:
        return InMemory(lambda store: FaultyStore(store, script()), full=True)


class SignedInMemory(InMemory):
    """A ``MemoryServer`` whose values are signed."""

    def __init__(self, *, full: bool = False) -> None:
        self._auth = ValueAuth("require", FixedKeyring(new_cell_keys()), ValueCounts())
        super().__init__(self._signed, full=full)

    def _signed(self, store: Store) -> Store:
        assert isinstance(store, ClaimStore)
        return SignedStore(store, self._auth)


class TestSignedStore(MemcachedContract):
    @pytest.fixture
    def server(self) -> SignedInMemory:
        return SignedInMemory()

    @pytest.fixture
    def full_server(self) -> SignedInMemory:
        return SignedInMemory(full=True)


class OnMemcached:
    """A ``MemcachedServer`` as a ``contract.store.Server``."""

    def __init__(self, server: MemcachedServer) -> None:
        self._server = server
        self.stop, self.start, self.restart = server.stop, server.start, server.restart
        self.wait = time.sleep

    def connect(self) -> Store:
        return MemcachedStore(self._server.address, timeout_s=5.0)

    def flush(self) -> None:
        with contextlib.closing(MemcachedStore(self._server.address, timeout_s=5.0)) as store:
            store.flush_all()


@pytest.mark.service
class TestMemcachedStore(MemcachedContract):
    @pytest.fixture
    def server(self, memcached: MemcachedServer) -> OnMemcached:
        return OnMemcached(memcached)

    @pytest.fixture
    def full_server(self, memcached_factory: Callable[..., MemcachedServer]) -> Iterator[OnMemcached]:
        server = memcached_factory(memory_mb=FULL_MB, no_evict=True)
        yield OnMemcached(server)
        server.close()


# -- claims ---------------------------------------------------------------------------------------


class TestClaimsInMemory(ClaimStoreContract):
    @pytest.fixture
    def server(self) -> InMemory:
        return InMemory(lambda store: store)


class TestClaimsInAStoreWithoutFaults(ClaimStoreContract):
    @pytest.fixture
    def server(self) -> InMemory:
        return InMemory(lambda store: FaultyStore(store, script()))


class TestClaimsBehindABreaker(ClaimStoreContract):
    @pytest.fixture
    def server(self) -> InMemory:
        clock = ManualClock()

        def wrapped(store: Store) -> Store:
            assert isinstance(store, ClaimStore)
            return ClaimBreaker(store, clock)

        return InMemory(wrapped)


class TestClaimsInASignedStore(ClaimStoreContract):
    @pytest.fixture
    def server(self) -> SignedInMemory:
        return SignedInMemory()


@pytest.mark.service
class TestClaimsInMemcached(ClaimStoreContract):
    @pytest.fixture
    def server(self, memcached: MemcachedServer) -> OnMemcached:
        return OnMemcached(memcached)


# -- databases ------------------------------------------------------------------------------------


class InMemoryDatabase:
    """A ``MemoryDatabase`` as a ``contract.store.DatabaseServer``."""

    def __init__(self, *, full: bool = False) -> None:
        self._clock = ManualClock()
        self._database = MemoryDatabase(clock=self._clock, max_bytes=2 * 1024**2 if full else None)
        database = self._database
        self.stop, self.start, self.restart, self.flush = (
            database.stop,
            database.start,
            database.restart,
            database.flush,
        )
        self.backup, self.restore, self.wait = database.backup, database.restore, self._clock.advance

    def connect(self) -> Store:
        return FaultyStore(MemoryStore(self._database, SystemClock()), script(), whole=True)


class TestMemoryDatabase(DatabaseContract):
    @pytest.fixture
    def server(self) -> InMemoryDatabase:
        return InMemoryDatabase()

    @pytest.fixture
    def full_server(self) -> InMemoryDatabase:
        return InMemoryDatabase(full=True)


class OnDatabase:
    """A database with nodestate's tables as a ``contract.store.DatabaseServer``."""

    wait = staticmethod(time.sleep)

    def __init__(self, url: str, server: SqlServer | None = None) -> None:
        self.url = url
        self._server = server
        upgrade(url)

    def connect(self) -> Store:
        return SqlStore(self.url, timeout_s=5.0)

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()

    def start(self) -> None:
        assert self._server is not None
        self._server.start()

    def restart(self) -> None:
        assert self._server is not None
        self._server.restart()

    def flush(self) -> None:
        self.restore({})

    def backup(self) -> dict[str, Rows]:
        return contents(self.url)

    def restore(self, backup: dict[str, Rows]) -> None:
        put_contents(self.url, backup)


class OnSqlite(OnDatabase):
    """A SQLite file. It has no server: an outage is a process that locks the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self._file = LockedFile(path)
        self.stop, self.start = self._file.lock, self._file.release  # type: ignore[method-assign]

    def connect(self) -> Store:
        return SqlStore(self.url, timeout_s=0.02)

    def restart(self) -> None:
        """There is no process to stop."""


class TestSqlStoreOnSqlite(DatabaseContract):
    @pytest.fixture
    def server(self, tmp_path: Path) -> OnSqlite:
        return OnSqlite(tmp_path / "state.db")

    @pytest.fixture
    def full_server(self, server: OnSqlite) -> Iterator[OnSqlite]:
        def limit(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA max_page_count = 512")

        event.listen(Pool, "connect", limit)
        yield server
        event.remove(Pool, "connect", limit)


@pytest.fixture(scope="module")
def on_mariadb(mariadb: MariadbServer) -> OnDatabase:
    return OnDatabase(create_database(mariadb), mariadb)


@pytest.fixture(scope="module")
def on_postgres(postgres: PostgresServer) -> OnDatabase:
    return OnDatabase(create_database(postgres), postgres)


@pytest.mark.service
class TestSqlStoreOnMariadb(DatabaseContract):
    @pytest.fixture
    def server(self, on_mariadb: OnDatabase) -> OnDatabase:
        on_mariadb.flush()
        return on_mariadb

    @pytest.fixture
    def full_server(self) -> Iterator[OnDatabase]:
        small = ("--innodb-file-per-table=0", "--innodb-data-file-path=ibdata1:12M:autoextend:max:16M")
        with MariadbServer(extra=small) as server:
            yield OnDatabase(server.url, server)


@pytest.mark.service
class TestSqlStoreOnPostgres(DatabaseContract):
    @pytest.fixture
    def server(self, on_postgres: OnDatabase) -> OnDatabase:
        on_postgres.flush()
        return on_postgres

    @pytest.fixture
    def full_server(self) -> Iterator[OnDatabase]:
        try:
            with PostgresServer() as server, small_disk(Path(f"{server.folder}/small"), 16) as disk:
                shutil.chown(disk, "postgres", "postgres")
                run_sql(server.admin_url, f"CREATE TABLESPACE small LOCATION '{disk}'")
                yield OnDatabase(create_database(server, tablespace="small"), server)
        except PermissionError as error:
            pytest.skip(str(error))


# -- the double does what memcached does ----------------------------------------------------------

KEYS = ("a", "b", "c")
OPERATIONS = st.tuples(
    st.sampled_from([Put.ADD, Put.CAS, Put.DELETE]),
    st.sampled_from(KEYS),
    st.binary(max_size=12),
    st.sampled_from(("current", "former", "none", "never")),
    st.sampled_from((0, 100)),
)
CALLS = st.tuples(st.sampled_from((0, 1)), st.lists(OPERATIONS, min_size=1, max_size=6))


class Twin:
    """Makes the same calls to both stores. CAS ids differ between them, so each side gets its own."""

    def __init__(self, pairs: list[tuple[Store, Store]], prefix: str) -> None:
        self._pairs = pairs
        self._prefix = prefix
        self._ids: dict[str, list[tuple[int, int]]] = {key: [] for key in KEYS}

    def call(self, connection: int, operations: list[tuple[Put, str, bytes, str, int]]) -> None:
        ours: list[Write] = []
        theirs: list[Write] = []
        for put, key, value, which, ttl_s in operations:
            known = self._ids[key]
            ids = {"current": known[-1:], "former": known[-2:-1]}.get(which) or [(0, 0)]
            cas = (NEVER_GIVEN, NEVER_GIVEN) if which == "never" else ids[0]
            for writes, its_id in ((ours, cas[0]), (theirs, cas[1])):
                writes.append(Write(put, self._prefix + key, value, its_id if put is Put.CAS else 0, ttl_s))
        double, real = self._pairs[connection]
        expected, found = double.write(ours), real.write(theirs)
        assert [written.status for written in found] == [written.status for written in expected]
        for (_, key, *_), ours_written, theirs_written in zip(operations, expected, found, strict=True):
            assert (ours_written.cas == 0) == (theirs_written.cas == 0)
            if ours_written.cas:
                self._ids[key].append((ours_written.cas, theirs_written.cas))
        self.compare(connection)

    def compare(self, connection: int) -> None:
        double, real = self._pairs[connection]
        keys = [self._prefix + key for key in KEYS]
        expected, found = double.fetch(keys), real.fetch(keys)
        assert set(found) == set(expected)
        for key, item in expected.items():
            ours, theirs = self._ids[key.removeprefix(self._prefix)][-1]
            assert item == Item(item.value, ours, item.ttl_s)
            ttls = (None,) if item.ttl_s is None else range(item.ttl_s - 2, item.ttl_s + 3)
            assert (found[key].value, found[key].cas) == (item.value, theirs)
            assert found[key].ttl_s in ttls


@pytest.mark.service
def test_memory_and_memcached_give_the_same_outcomes(memcached: MemcachedServer) -> None:
    """Tests with the double are valid for memcached."""
    server = MemoryServer()
    pairs: list[tuple[Store, Store]] = [
        (MemoryStore(server), MemcachedStore(memcached.address, timeout_s=5.0)) for _ in range(2)
    ]
    examples = iter(range(10**9))

    @given(st.lists(CALLS, max_size=20))
    def run(calls: list[tuple[int, list[tuple[Put, str, bytes, str, int]]]]) -> None:
        twin = Twin(pairs, f"{next(examples)}:")
        for connection, operations in calls:
            twin.call(connection, operations)

    run()
    for _, real in pairs:
        real.close()


def test_memory_database_and_sqlite_give_the_same_outcomes(tmp_path: Path) -> None:
    """Tests with the double are valid for databases."""
    url = f"sqlite:///{tmp_path}/state.db"
    upgrade(url)
    database = MemoryDatabase()
    pairs: list[tuple[Store, Store]] = [(MemoryStore(database), SqlStore(url, timeout_s=5.0)) for _ in range(2)]
    examples = iter(range(10**9))

    @given(st.lists(CALLS, max_size=20))
    def run(calls: list[tuple[int, list[tuple[Put, str, bytes, str, int]]]]) -> None:
        twin = Twin(pairs, f"{next(examples)}:")
        for connection, operations in calls:
            twin.call(connection, operations)

    run()
    for _, real in pairs:
        real.close()


# -- a store that fails on purpose ----------------------------------------------------------------

WRITES = [Write(Put.ADD, key, b"1") for key in KEYS]


@pytest.mark.parametrize("done", [0, 1, 3, None])
def test_failed_write_may_have_taken_effect(done: int | None) -> None:
    """'Timed out, outcome unknown' is the most important row of the fault table."""
    memory = MemoryStore()
    store = FaultyStore(memory, script(None, Fault(done=done)))
    assert store.fetch(KEYS) == {}
    with pytest.raises(StoreUnavailableError):
        store.write(WRITES)
    assert set(memory.fetch(KEYS)) == set(KEYS[:done])
    assert store.write([Write(Put.DELETE, "z")]) == [WriteResult(WriteStatus.MISSING)]


def test_late_write_arrives_after_its_sender_continued() -> None:
    store = FaultyStore(MemoryStore(), script(Fault(done=1, late=True)))
    with pytest.raises(StoreUnavailableError):
        store.write(WRITES)
    store.write([Write(Put.ADD, "b", b"meanwhile")])
    assert [written.status for written in store.arrive()] == [WriteStatus.CONFLICT, WriteStatus.STORED]
    assert {key: item.value for key, item in store.fetch(KEYS).items()} == {"a": b"1", "b": b"meanwhile", "c": b"1"}
    assert store.arrive() == []


def test_lost_write_never_arrives() -> None:
    store = FaultyStore(MemoryStore(), script(Fault(late=True)))
    with pytest.raises(StoreUnavailableError):
        store.write(WRITES)
    store.lose()
    assert store.arrive() == []
    assert store.fetch(KEYS) == {}


def test_random_faults_repeat_with_the_same_seed() -> None:
    first, second = chance(7, 0.5), chance(7, 0.5)
    faults = [first("write", 3) for _ in range(100)]
    assert faults == [second("write", 3) for _ in range(100)]
    assert None in faults
    assert {fault.late for fault in faults if fault} == {True, False}
    assert {fault.done for fault in faults if fault} == {0, 1, 2, 3}


# -- a memory server's own faults -----------------------------------------------------------------


def test_least_recently_used_item_is_evicted_first() -> None:
    server = MemoryServer(max_bytes=4_000)
    store = MemoryStore(server)
    store.write([Write(Put.ADD, key, b"x" * 1_000) for key in ("a", "b", "c")])
    store.fetch(["a"])
    store.write([Write(Put.ADD, "d", b"x" * 1_000)])
    assert server.keys() == ["a", "c", "d"]
    assert store.write([Write(Put.ADD, "e", b"x" * 5_000)]) == [WriteResult(WriteStatus.FULL)]


def test_one_item_can_be_evicted() -> None:
    server = MemoryServer()
    store = MemoryStore(server)
    store.write(WRITES)
    assert server.evict("b")
    assert not server.evict("b")
    assert set(store.fetch(KEYS)) == {"a", "c"}


def test_memory_urls_of_one_process_share_a_server() -> None:
    """A consumer and a reader in one process, as under ``nodestate up``, must meet."""
    [first], [second] = open_stores(Config()), open_stores(Config())
    key = "shared-by-this-test"
    first.write([Write(Put.ADD, key, b"1")])
    assert second.fetch([key])[key].value == b"1"
    second.write([Write(Put.DELETE, key)])


def test_each_server_of_a_cell_has_its_store_in_order() -> None:
    stores = open_stores(Config(store="memcached://one:1,two:2,three"))
    assert [store.name for store in stores] == ["one:1", "two:2", "three:11211"]
