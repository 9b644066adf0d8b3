"""A RabbitMQ that stops, dies, freezes or refuses: nothing confirmed is lost, and old views never pass for fresh."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nodestate.broker import queue_depths
from tests.faults.cell import DESIGNS, CellUnderTest, wait_until
from tests.faults.conftest import CellFactory
from tests.services.servers import MemcachedServer, RabbitServer

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def own_rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ that may be killed."""
    with RabbitServer() as server:
        yield server


@pytest.fixture
def cell_of_its_own(
    cell_of: CellFactory, memcached: MemcachedServer, own_rabbit: RabbitServer
) -> Iterator[CellUnderTest]:
    with cell_of(memcached.url, broker=own_rabbit.url) as cell:
        cell.begin()
        yield cell


def wait_until_stale(cell: CellUnderTest) -> None:
    """Every node of every design is over the bound: whoever reads gets nothing, and nobody old state."""
    for design in DESIGNS:
        wait_until(
            lambda d=design: len(cell.read(d, cell.bound_s).stale) == len(cell.fleet.names),
            f"{design} passes for fresh while its broker is away",
        )


@pytest.mark.parametrize("how", ["stopped", "killed", "frozen"])
def test_a_broker_that_goes_away_and_comes_back(
    cell_of_its_own: CellUnderTest, own_rabbit: RabbitServer, how: str
) -> None:
    """I5, I6: views go stale while it is away; agents keep their newest state in memory and report it on its return."""
    cell = cell_of_its_own
    {"stopped": own_rabbit.stop, "killed": own_rabbit.kill, "frozen": own_rabbit.pause}[how]()
    wait_until_stale(cell)
    time.sleep(1.0)
    (own_rabbit.resume if how == "frozen" else own_rabbit.start)()
    cell.recovered(f"after RabbitMQ was {how}")


def test_what_was_confirmed_survives_the_death_of_broker_and_consumers(
    cell_of_its_own: CellUnderTest, own_rabbit: RabbitServer
) -> None:
    """I6, without any help from agents: they say nothing more, so all must come out of the queues on disk."""
    cell = cell_of_its_own
    for member in cell.members:
        member.kill()
    time.sleep(1.5)
    cell.fleet.rate = 0.0
    cell.fleet.flush()
    cell.fleet.mute = True
    waiting = sum(depth.ready for depth in queue_depths(cell.config) if depth.partition is not None)
    own_rabbit.kill()
    own_rabbit.start()
    for member in cell.members:
        member.start()
    answers = cell.fleet.answers
    took_s = cell.equal()
    assert cell.fleet.answers == answers
    cell.require_no_violations()
    cell.record(f"{waiting} messages came out of the queues; equal {took_s:.1f} s after consumers were started")
