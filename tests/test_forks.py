"""Connections and schedulers that were used before a fork: parent and child get answers to their own requests only."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from harness.databases import create_database
from harness.forks import in_forked_child
from harness.servers import MariadbServer, MemcachedServer, PostgresServer, RabbitServer
from nodestate.broker import KombuCourier, KombuResyncSender, KombuSink
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.ports import Put, Resync, Write
from nodestate.scheduling import Scheduler
from nodestate.sql import migrate
from nodestate.sql.store import SqlStore
from nodestate.store.memcached import MemcachedStore

ROUNDS_COUNT = 300


@contextmanager
def children(count: int, work: Callable[[int], None]) -> Iterator[None]:
    """Run ``work(number)`` in forked children beside the ``with`` block. All of them must end without an error."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                work(number)
            except BaseException:  # noqa: BLE001 - the exit code says that it failed
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    yield
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


@pytest.mark.service
def test_a_memcached_store_used_before_a_fork_gives_no_process_values_of_other_keys(
    memcached: MemcachedServer,
) -> None:
    """Regression: 1,635 of 9,526 fetches returned the value of another process' key."""
    with closing(MemcachedStore(memcached.address, timeout_s=5.0)) as store:
        store.write([Write(Put.ADD, f"k{number}", b"%d" % number) for number in range(4)])

        def ask(number: int) -> None:
            for _ in range(ROUNDS_COUNT):
                found = store.fetch([f"k{number}"])
                assert found[f"k{number}"].value == b"%d" % number

        connection = store._client
        with children(3, ask):
            ask(3)
        assert store._client is connection


def run_on(store: SqlStore, statement: str) -> object:
    """Execute a statement on the connection for fetches."""
    assert store._reading is not None
    return store._reading.exec_driver_sql(statement).scalar()


@pytest.mark.service
@pytest.mark.parametrize("kind", [pytest.param("mariadb", marks=pytest.mark.thorough), "postgres"])
def test_an_sql_store_used_before_a_fork_keeps_the_connections_of_its_parent(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The child answers by connections of its own, and its end does not end a session of the parent."""
    server: MariadbServer | PostgresServer = request.getfixturevalue(kind)
    url = create_database(server)
    migrate.upgrade(url)
    session = "SELECT CONNECTION_ID()" if kind == "mariadb" else "SELECT pg_backend_pid()"
    with closing(SqlStore(url, timeout_s=10.0)) as store:
        store.write([Write(Put.ADD, "parent", b"1")])
        assert store.fetch(["parent"])["parent"].value == b"1"
        before = run_on(store, session)

        def child() -> object:
            store.write([Write(Put.ADD, "child", b"2")])
            found = store.fetch(["parent", "child"])
            store.close()
            gc.collect()
            return sorted((key, item.value) for key, item in found.items())

        assert in_forked_child(child) == str([("child", b"2"), ("parent", b"1")])
        assert store.fetch(["child"])["child"].value == b"2"
        assert run_on(store, session) == before


@pytest.mark.service
def test_broker_connections_used_before_a_fork_stay_with_the_parent(rabbit: RabbitServer, cell: str) -> None:
    """py-amqp shuts a connection down when it is collected, also in a child: the parent's ended with it."""
    config = Config(broker=rabbit.url, cell=cell, partitions=2)
    with closing(KombuCourier(config)) as courier, closing(KombuSink(config, control=False)) as sink:
        resync = KombuResyncSender(config)
        queue = courier.reply_to
        confirms: list[bool] = []
        sink.publish(0, b"parent", confirms.append)
        sink.flush(60)
        resync.request_resync(Resync())

        def child() -> object:
            confirmed: list[bool] = []
            own = courier.reply_to
            sink.publish(0, b"child", confirmed.append)
            sink.flush(60)
            resync.request_resync(Resync())
            for each in (courier, sink, resync):
                each.close()
            gc.collect()
            return own != queue, confirmed

        assert in_forked_child(child) == str((True, [True]))
        sink.publish(0, b"parent", confirms.append)
        sink.flush(60)
        assert (courier.reply_to, confirms) == (queue, [True, True])
        resync.close()


def test_a_forked_scheduler_has_a_name_of_its_own_and_no_claims_of_its_parent() -> None:
    """Nova forks its workers after it made their driver. Two schedulers of one name would end each other's claims."""
    config = Config()
    with (
        Reader(config) as reader,
        Scheduler(config, reader=reader) as unnamed,
        Scheduler(config, name="nova", reader=reader) as named,
    ):
        names = unnamed.name, named.name
        session, table = named.session, named.claim_table

        def child() -> object:
            fresh = named.session is not session and named.claim_table is not table
            return fresh, named.name == f"nova:{os.getpid()}", unnamed.name.endswith(f":{os.getpid()}")

        assert in_forked_child(child) == str((True, True, True))
        assert (unnamed.name, named.name) == names
