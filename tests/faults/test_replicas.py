"""Three memcached servers and two replicas: a server that is killed, frozen or flushed costs readers nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from harness.cell import Cell
from harness.keyspace import KeySpace
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from harness.watchers import ViewWatcher
from nodestate.store import keys
from nodestate.store.head import read_head
from nodestate.store.memcached import MemcachedStore
from nodestate.store.round_trips import run_one
from tests.conftest import MemcachedFactory
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service


def copies(cell: Cell, servers: list[MemcachedServer]) -> list[int]:
    """The number of replicas in sync, from the head of each replica of each partition; 0: there is no head."""
    found, config = [], cell.config
    for letter, shift in (("s", 0), ("sr", 1)):
        for number in range(config.partitions):
            prefix = keys.prefix(config.cell, config.partitions, number, letter)
            store = MemcachedStore(servers[(number + shift) % len(servers)].address, timeout_s=5.0)
            head = run_one(store, read_head(prefix, None))
            found.append(head[0].copies if head is not None else 0)
            store.close()
    return found


@pytest.mark.thorough
def test_one_of_three_servers_is_away(
    cell_of: CellFactory, memcached: MemcachedServer, memcached_factory: MemcachedFactory
) -> None:
    """I1 and I5 hold in every view. Events go on to be stored, and the server is filled when it returns."""
    servers = [memcached, memcached_factory(), memcached_factory()]
    url = ",".join([memcached.url, *(server.address for server in servers[1:])])
    victim = servers[1]

    def flush() -> None:
        with KeySpace(cell.config, victim.address) as space:
            space.flush_all()

    def nothing() -> None:
        """It is back already."""

    with cell_of(url, designs=("snapshot", "snapshot_replica"), bound_s=3.0, store_timeout_s=0.3, renew_s=0.5) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        wait_until(lambda: watcher.fresh > 0, "the watcher sees no fresh view")
        faults: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("killed", victim.kill, victim.start),
            ("frozen", victim.pause, victim.resume),
            ("flushed", flush, nothing),
        ]
        for name, go_away, come_back in faults:
            wait_until(lambda: copies(cell, servers) == [2] * 16, lambda: f"in sync are {copies(cell, servers)}")
            before, stale = watcher.reads, watcher.stale_reads
            began_at = time.monotonic()
            go_away()
            require_new_views(watcher, cell)
            away_s = time.monotonic() - began_at
            come_back()
            reads, stale = watcher.reads - before, watcher.stale_reads - stale
            cell.record(f"one of three servers {name} for {away_s:.1f} s: {stale} of {reads} views had a stale node")
            cell.require_no_violations()
        cell.wait_until_equal()
    for server in servers[1:]:
        server.close()


def require_new_views(watcher: ViewWatcher, cell: Cell) -> None:
    """Wait until the reader had 100 more views in which no node is stale or incomplete, and each event is confirmed."""
    for _ in range(5):
        fresh = watcher.fresh
        wait_until(lambda fresh=fresh: watcher.fresh >= fresh + 20, "the reader sees no more fresh views")
        cell.fleet.flush(60.0)
