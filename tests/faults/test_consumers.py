"""Consumers that die, freeze and come back."""
from __future__ import annotations
import time
import pytest
from tests.faults.conftest import CellFactory
from tests.services.servers import MemcachedServer

pytestmark = pytest.mark.service


def test_smoke(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    with cell_of(memcached.url) as cell:
        t = time.monotonic()
        cell.begin()
        print("begun", time.monotonic() - t)
        time.sleep(5)
        print([ (w.design, w.reads, w.fresh, w.stale_reads, w.oldest_s) for w in cell.watchers], cell.fleet.changes)
        cell.members[0].kill()
        cell.recovered("killed")
