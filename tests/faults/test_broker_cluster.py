"""A cluster of three RabbitMQ nodes with quorum queues: nodes die, freeze and restart while agents publish."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from harness.cell import Cell
from harness.servers import MemcachedServer, RabbitCluster, ServerMissingError
from harness.waiting import wait_until
from harness.watchers import ViewWatcher
from tests.conftest import skip_or_fail
from tests.faults.conftest import CellFactory

pytestmark = [pytest.mark.service, pytest.mark.thorough]


@pytest.fixture
def cluster() -> Iterator[RabbitCluster]:
    """Three nodes."""
    try:
        made = RabbitCluster()
    except ServerMissingError as error:
        skip_or_fail(error)
    with made:
        yield made


def test_one_of_three_nodes_is_away(cell_of: CellFactory, memcached: MemcachedServer, cluster: RabbitCluster) -> None:
    """Each node is killed, then frozen, in turn. No confirmed event is lost, and events go on to be confirmed."""
    with cell_of(memcached.url, broker=cluster.url, queue_type="quorum", designs=("snapshot",), bound_s=3.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        for number, node in enumerate(cluster.nodes):
            for name, go_away, come_back in (("killed", node.kill, node.start), ("frozen", node.pause, node.resume)):
                before = watcher.reads, watcher.stale_reads
                go_away()
                new_s = wait_for_new_views(cell, watcher)
                wait_until(lambda seen=watcher.fresh: watcher.fresh >= seen + 60, "there are no more fresh views")
                come_back()
                cell.wait_until_well()
                cell.record(
                    f"node {number + 1} of 3 {name}: all events confirmed again, and in views, after {new_s:.1f} s; "
                    f"{watcher.stale_reads - before[1]} of {watcher.reads - before[0]} views had a stale node"
                )
                cell.require_no_violations()
        cell.wait_until_equal()


def test_two_of_three_nodes_are_away(cell_of: CellFactory, memcached: MemcachedServer, cluster: RabbitCluster) -> None:
    """Quorum queues take nothing then. Agents keep their states, views age, and all is well once one node is back."""
    with cell_of(memcached.url, broker=cluster.url, queue_type="quorum", designs=("snapshot",), bound_s=3.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        for node in cluster.nodes[:2]:
            node.kill()
        stale = watcher.stale_reads
        wait_until(lambda: watcher.stale_reads > stale, "the views do not age")
        cluster.nodes[1].start()
        cell.wait_until_recovered("two of three nodes killed, one is back")
        cluster.nodes[0].start()
        cell.wait_until_recovered("both nodes are back")


def wait_for_new_views(cell: Cell, watcher: ViewWatcher) -> float:
    """Wait until all agents' states are confirmed, and the reader had fresh views since; returns the seconds."""
    began = time.monotonic()
    cell.fleet.flush(120.0)
    fresh = watcher.fresh
    wait_until(lambda: watcher.fresh >= fresh + 5, "the reader sees no fresh views")
    return time.monotonic() - began
