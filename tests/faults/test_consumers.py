"""Consumers that die, freeze and come back, at chosen places within a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import pytest

from harness.cell import Cell
from harness.members import Member
from harness.profile import by_profile
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


class BatchPlace(NamedTuple):
    """A place within a batch: before the ``skip``-th request that contains ``command``; between batches if it is
    empty.
    """

    name: str
    command: bytes
    skip: int


BETWEEN_BATCHES = BatchPlace("between batches", b"", 0)
BEFORE_ITEMS = BatchPlace("before anything was written", b":log:", 0)
AFTER_SOME_ITEMS = BatchPlace("after some of the items", b":s:node:", 3)
BEFORE_FIRST_HEAD = BatchPlace("before the first head", b":head:", 0)
BETWEEN_HEADS = BatchPlace("after one design's head and before the other's", b":head:", 1)

PLACES = (BETWEEN_BATCHES, BEFORE_ITEMS, AFTER_SOME_ITEMS, BEFORE_FIRST_HEAD, BETWEEN_HEADS)
FROZEN_PLACES = by_profile(fast=(AFTER_SOME_ITEMS, BETWEEN_HEADS), thorough=PLACES)
PAUSES_COUNT = by_profile(fast=1, thorough=3)


def owner_pids(cell: Cell) -> set[str]:
    """Return the process ids of the owners of all partitions, as the heads of all designs name them."""
    found = set()
    store = MemcachedStore(cell.config.store_servers[0], timeout_s=1.0)
    for design in cell.config.designs:
        for partition in range(cell.config.partitions):
            prefix = keys.prefix(cell.config.cell, cell.config.partitions, partition, DESIGNS[design].letter)
            head = run_one(store, read_head(prefix, None))
            assert head is not None, f"partition {partition} of {design} has no head"
            found.add(head[0].owner.partition("/")[0].rpartition(":")[2])
    store.close()
    return found


def owns_all(cell: Cell, member: Member) -> bool:
    """True if this member owns every partition in every design."""
    return owner_pids(cell) == {str(member.pid)}


@pytest.fixture
def proxies(memcached: MemcachedServer) -> Iterator[list[TcpProxy]]:
    """Two proxies before the same memcached, one for each member."""
    with ExitStack() as opened:
        yield [opened.enter_context(TcpProxy(("127.0.0.1", memcached.port))) for _ in range(2)]


@pytest.fixture
def pair(cell_of: CellFactory, memcached: MemcachedServer, proxies: list[TcpProxy]) -> Iterator[Cell]:
    """A cell whose first member owns all partitions and whose second member stands by for all of them."""
    settings = [{"NODESTATE_STORE": proxy.url} for proxy in proxies]
    with cell_of(memcached.url, members=2, member_settings=settings, alone=True) as cell:
        cell.watch()
        yield cell


def hold(proxy: TcpProxy, place: BatchPlace) -> None:
    """Let the member behind this proxy proceed to this place of a batch, and no further."""
    if place.command:
        proxy.hold_at(place.command, place.skip)
        proxy.wait_until_holding()


def test_standby_loses_nothing_wherever_in_a_batch_the_owner_was_killed(pair: Cell, proxies: list[TcpProxy]) -> None:
    """I6: the broker gives the unacked events of the dead owner to the standby, which builds on the owner's
    stored state.
    """
    owner, heir = 0, 1
    for place in PLACES:
        hold(proxies[owner], place)
        killed_at = time.monotonic()
        pair.members[owner].kill()
        proxies[owner].cut()
        wait_until(partial(owns_all, pair, pair.members[heir]), "the standby does not take over")
        took_s = time.monotonic() - killed_at
        pair.members[owner].start()
        pair.members[owner].wait_for_log("connected")
        pair.wait_until_recovered(f"killed {place.name}: taken over after {took_s:.1f} s")
        owner, heir = heir, owner


def test_frozen_owner_changes_nothing_that_readers_accept_after_it_was_replaced(
    pair: Cell, proxies: list[TcpProxy]
) -> None:
    """I7: an owner freezes, the standby takes over, and then everything arrives that the frozen owner had under way."""
    zombie, heir = 0, 1
    for place in FROZEN_PLACES:
        hold(proxies[zombie], place)
        pair.members[zombie].pause()
        wait_until(partial(owns_all, pair, pair.members[heir]), "the standby does not take over")
        proxies[zombie].release()
        if place.command:
            wait_until(proxies[zombie].delivered.is_set, "the request that was held is not delivered")
        fenced = len(pair.members[zombie].logged("fenced"))
        pair.members[zombie].resume()
        if place.command:
            # An owner that froze between batches mostly learns from the broker that it was replaced, and writes
            # nothing.
            pair.members[zombie].wait_for_log("fenced", fenced + 1)
        pair.wait_until_recovered(f"frozen {place.name}, and back after a takeover")
        assert owns_all(pair, pair.members[heir]), "the frozen owner got a partition back that no operator gave to it"
        zombie, heir = heir, zombie
    for member in pair.members:
        assert member.stop()["fenced"] == len(member.logged("fenced"))


def test_head_that_is_stored_long_after_it_was_made_does_not_look_new(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: the owner makes a head, pauses, and stores the head afterwards. Its age counts from when it was made."""
    with TcpProxy(("127.0.0.1", memcached.port)) as proxy:
        patient = {"NODESTATE_STORE": proxy.url, "NODESTATE_STORE_TIMEOUT_S": "60"}
        with cell_of(memcached.url, members=1, member_settings=[patient], broker_heartbeat_s=30) as cell:
            cell.watch()
            for _ in range(PAUSES_COUNT):
                proxy.hold_at(b":head:")
                proxy.wait_until_holding()
                wait_until(
                    lambda: all(cell.read(design).age > 2 * cell.bound_s for design in cell.config.designs),
                    "the views do not age",
                )
                proxy.release()
                cell.wait_until_well()
            cell.wait_until_recovered(f"after {PAUSES_COUNT} pauses")
