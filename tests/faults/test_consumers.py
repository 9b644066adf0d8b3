"""Consumers that die, freeze and come back, at chosen places within a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodestate import keys
from nodestate.designs import DESIGNS
from nodestate.head import read_head
from nodestate.lockstep import run_one
from nodestate.memcached import MemcachedStore
from tests.faults.cell import CellUnderTest, wait_until
from tests.faults.conftest import CellFactory
from tests.faults.members import Member
from tests.faults.proxy import Relay
from tests.services.servers import MemcachedServer

pytestmark = pytest.mark.service

PLACES = [
    pytest.param(b"", 0, id="between batches"),
    pytest.param(b":log:", 0, id="before anything is written"),
    pytest.param(b":s:node:", 3, id="after some of the items"),
    pytest.param(b":head:", 0, id="before the first head"),
    pytest.param(b":head:", 1, id="after one design's head and before the other's"),
]


def owners(cell: CellUnderTest) -> set[str]:
    """Who owns the partitions, by the heads of all designs: the owners' process ids."""
    found = set()
    store = MemcachedStore(cell.config.store_servers[0], timeout_s=1.0)
    for design in cell.config.designs:
        for partition in range(cell.config.partitions):
            head = run_one(store, read_head(keys.prefix(cell.config.cell, partition, DESIGNS[design].letter), None))
            assert head is not None, f"partition {partition} of {design} has no head"
            found.add(head[0].owner.partition("/")[0].rpartition(":")[2])
    store.close()
    return found


def took_all(cell: CellUnderTest, member: Member) -> bool:
    """True if every partition of every design is this member's."""
    return owners(cell) == {str(member.pid)}


@pytest.fixture
def relays(memcached: MemcachedServer) -> Iterator[list[Relay]]:
    """Two ways to the same memcached, one for each member."""
    with ExitStack() as opened:
        yield [opened.enter_context(Relay(("127.0.0.1", memcached.port))) for _ in range(2)]


@pytest.fixture
def pair(cell_of: CellFactory, memcached: MemcachedServer, relays: list[Relay]) -> Iterator[CellUnderTest]:
    """A cell whose first member owns all partitions, and whose second stands by for all."""
    settings = [{"NODESTATE_STORE": relay.url} for relay in relays]
    with cell_of(memcached.url, members=2, member_settings=settings, alone=True) as cell:
        cell.begin()
        yield cell


@pytest.mark.parametrize(("place", "skip"), PLACES)
def test_a_killed_consumer_loses_nothing_wherever_it_was(
    pair: CellUnderTest, relays: list[Relay], place: bytes, skip: int
) -> None:
    """I6: what it had not acked comes again to the standby, which builds on whatever the dead one left behind."""
    first, second = pair.members
    if place:
        relays[0].hold_at(place, skip)
        assert relays[0].holding.wait(30.0), "no such command came by"
    began = time.monotonic()
    first.kill()
    relays[0].cut()

    wait_until(lambda: took_all(pair, second), "the standby does not take over")
    took_s = time.monotonic() - began
    first.start()
    first.wait_for("connected")
    pair.recovered(f"taken over {took_s:.1f} s after the kill")


@pytest.mark.parametrize(("place", "skip"), PLACES)
def test_a_zombie_changes_nothing_that_readers_accept(
    pair: CellUnderTest, relays: list[Relay], place: bytes, skip: int
) -> None:
    """I7: an owner froze, the other took over, and then all that the frozen one had under way arrives."""
    zombie, heir = pair.members
    if place:
        relays[0].hold_at(place, skip)
        assert relays[0].holding.wait(30.0), "no such command came by"
    zombie.pause()
    wait_until(lambda: took_all(pair, heir), "the standby does not take over")

    relays[0].let_go()
    time.sleep(0.3)
    zombie.resume()

    if place:
        zombie.wait_for("fenced")
    pair.recovered("after the zombie's return")
    assert took_all(pair, heir), "the zombie got a partition back that nobody gave it"
    assert zombie.stop()["fenced"] in ({1} if place else {0, 1})
    assert heir.stop()["fenced"] == 0


def test_an_owner_that_slept_does_not_pass_for_having_been_awake(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: a head that was written down before a pause and stored after it must not look like news."""
    with Relay(("127.0.0.1", memcached.port)) as relay:
        patient = {"NODESTATE_STORE": relay.url, "NODESTATE_STORE_TIMEOUT_S": "20"}
        with cell_of(memcached.url, members=1, member_settings=[patient], broker_heartbeat_s=10) as cell:
            cell.begin()
            for _ in range(3):
                relay.hold_at(b":head:")
                assert relay.holding.wait(30.0), "no head was written"
                time.sleep(2 * cell.bound_s)
                relay.let_go()
                cell.well()
            cell.recovered("after three pauses")
