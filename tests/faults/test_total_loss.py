"""All copies are lost at once: the agents own their states, so the states come back."""

from __future__ import annotations

import time

import pytest

from harness.cell import DESIGNS
from harness.servers import MemcachedServer
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
