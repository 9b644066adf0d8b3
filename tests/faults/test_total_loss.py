"""All copies are lost at once: the agents own their states, so the states come back."""

from __future__ import annotations

import time
from functools import partial

import pytest

from harness.cell import DESIGNS
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import wait_until
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service


def test_agents_refill_a_cell_whose_consumers_and_memcached_died_at_once(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: no consumer vouches for a partition whose nodes it does not know, however empty it looks; a resync
    fills it.
    """
    with cell_of(memcached.url) as cell:
        cell.watch()
        answers = cell.fleet.answers
        for member in cell.members:
            member.kill()
        memcached.kill()
        wait_until(lambda: all(cell.read(d).age > cell.bound_s for d in DESIGNS), "the views do not age")
        memcached.start()
        began = time.monotonic()
        for member in cell.members:
            member.start()
        cell.wait_until_well()
        cell.record(f"all nodes known again {time.monotonic() - began:.1f} s after consumers were started")
        assert cell.fleet.answers > answers
        cell.wait_until_recovered("after the loss of all consumers and all of memcached")


@pytest.mark.thorough
@pytest.mark.parametrize("members", [1, 2])
def test_no_node_vanishes_if_broker_and_memcached_restart_while_all_agents_are_dead(
    cell_of: CellFactory, memcached: MemcachedServer, rabbit: RabbitServer, members: int
) -> None:
    """I5, I6: a controller reboots. The consumers live, and know the nodes, wherever the partitions go afterwards."""
    with cell_of(memcached.url, members=members, count=40, heartbeat_s=2.0) as cell:
        cell.wait_until_well()
        cell.wait_until_equal()
        # The broker writes acknowledgements to its disk together with the next confirmed event. Without that, it would
        # deliver the message that began each queue again, and the nodes would be incomplete until their agents live.
        for name in cell.fleet.names:
            cell.fleet.call(partial(cell.fleet.change, name))
        cell.fleet.flush()
        cell.wait_until_equal()
        cell.fleet.stop()
        for server in (memcached, rabbit):
            server.kill()
        for server in (memcached, rabbit):
            server.start()

        def all_views_are_whole() -> bool:
            whole = True
            for view in [*map(cell.read, DESIGNS), *map(cell.read_cold, DESIGNS)]:
                missing = set(cell.fleet.names) - set(view.nodes)
                assert view.incomplete or not missing, f"{len(missing)} nodes vanished, and the view does not say so"
                whole = whole and not view.incomplete
            return whole

        seconds = wait_until(all_views_are_whole, "the views stay incomplete")
        cell.record(f"{members} members, broker and memcached restarted, agents dead: whole after {seconds:.1f} s")
