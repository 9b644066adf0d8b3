"""Consumers that die, freeze and come back, at chosen places within a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from harness.cell import Cell
from harness.members import Member
from harness.proxies import TcpProxy
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.designs import DESIGNS
from nodestate.store import keys
from nodestate.store.head import read_head
from nodestate.store.memcached import MemcachedStore
from nodestate.store.round_trips import run_one
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service

PLACES = (
    ("between batches", b"", 0),
    ("before anything was written", b":log:", 0),
    ("after some of the items", b":s:node:", 3),
    ("before the first head", b":head:", 0),
    ("after one design's head and before the other's", b":head:", 1),
)
"""Where within a batch, as the command before which its connection to memcached is held."""


def owners(cell: Cell) -> set[str]:
    """Who owns the partitions, by the heads of all designs: the owners' process ids."""
    found = set()
    store = MemcachedStore(cell.config.store_servers[0], timeout_s=1.0)
    for design in cell.config.designs:
        for partition in range(cell.config.partitions):
            head = run_one(
                store,
                read_head(
                    keys.prefix(cell.config.cell, cell.config.partitions, partition, DESIGNS[design].letter), None
                ),
            )
            assert head is not None, f"partition {partition} of {design} has no head"
            found.add(head[0].owner.partition("/")[0].rpartition(":")[2])
    store.close()
    return found


def took_all(cell: Cell, member: Member) -> bool:
    """True if every partition of every design is this member's."""
    return owners(cell) == {str(member.pid)}


@pytest.fixture
def relays(memcached: MemcachedServer) -> Iterator[list[TcpProxy]]:
    """Two ways to the same memcached, one for each member."""
    with ExitStack() as opened:
        yield [opened.enter_context(TcpProxy(("127.0.0.1", memcached.port))) for _ in range(2)]


@pytest.fixture
def pair(cell_of: CellFactory, memcached: MemcachedServer, relays: list[TcpProxy]) -> Iterator[Cell]:
    """A cell whose first member owns all partitions, and whose second stands by for all."""
    settings = [{"NODESTATE_STORE": relay.url} for relay in relays]
    with cell_of(memcached.url, members=2, member_settings=settings, alone=True) as cell:
        cell.watch()
        yield cell


def hold(relay: TcpProxy, place: bytes, skip: int) -> None:
    """Let its member come to this place of a batch, and no further."""
    if place:
        relay.hold_at(place, skip)
        assert relay.holding.wait(30.0), f"no {place!r} came by"


def test_a_killed_consumer_loses_nothing_wherever_it_was(pair: Cell, relays: list[TcpProxy]) -> None:
    """I6: what it had not acked comes again to the standby, which builds on whatever the dead one left behind."""
    owner, heir = 0, 1
    for where, place, skip in PLACES:
        hold(relays[owner], place, skip)
        killed_at = time.monotonic()
        pair.members[owner].kill()
        relays[owner].cut()
        wait_until(partial(took_all, pair, pair.members[heir]), "the standby does not take over")
        took_s = time.monotonic() - killed_at
        pair.members[owner].start()
        pair.members[owner].wait_for_log("connected")
        pair.wait_until_recovered(f"killed {where}: taken over after {took_s:.1f} s")
        owner, heir = heir, owner


def test_a_zombie_changes_nothing_that_readers_accept(pair: Cell, relays: list[TcpProxy]) -> None:
    """I7: an owner froze, the other took over, and then all that the frozen one had under way arrives."""
    zombie, heir = 0, 1
    for where, place, skip in PLACES:
        hold(relays[zombie], place, skip)
        pair.members[zombie].pause()
        wait_until(partial(took_all, pair, pair.members[heir]), "the standby does not take over")
        relays[zombie].release()
        time.sleep(0.3)
        fenced = len(pair.members[zombie].logged("fenced"))
        pair.members[zombie].resume()
        if place:
            # One that froze between batches mostly learns from the broker that it is out, and does not even try.
            pair.members[zombie].wait_for_log("fenced", fenced + 1)
        pair.wait_until_recovered(f"frozen {where}, and back after a takeover")
        assert took_all(pair, pair.members[heir]), "the zombie got a partition back that nobody gave it"
        zombie, heir = heir, zombie
    for member in pair.members:
        assert member.stop()["fenced"] == len(member.logged("fenced"))


def test_an_owner_that_slept_does_not_pass_for_having_been_awake(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: a head that was written down before a pause and stored after it must not look like news."""
    with TcpProxy(("127.0.0.1", memcached.port)) as relay:
        patient = {"NODESTATE_STORE": relay.url, "NODESTATE_STORE_TIMEOUT_S": "20"}
        with cell_of(memcached.url, members=1, member_settings=[patient], broker_heartbeat_s=10) as cell:
            cell.watch()
            for _ in range(3):
                relay.hold_at(b":head:")
                assert relay.holding.wait(30.0), "no head was written"
                time.sleep(2 * cell.bound_s)
                relay.release()
                cell.wait_until_well()
            cell.wait_until_recovered("after three pauses")
