"""A memcached that loses items, fills up, or goes away: readers are right or refuse, and lost items come back."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from harness.cell import DESIGNS, Cell
from harness.keyspace import KeySpace
from harness.members import Member
from harness.profile import by_profile
from harness.proxies import TcpProxy
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.broker import DeadLetter, read_dead_letters
from nodestate.model import Version
from nodestate.model.partitioning import partition_of
from nodestate.view.view import View
from tests.conftest import MemcachedFactory
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service


KINDS_OF_KEYS = [("journal", kind) for kind in ("epoch", "head", "life", "segment", "checkpoint")]
KINDS_OF_KEYS += [("snapshot", kind) for kind in ("epoch", "head", "life", "node", "index")]


def epochs_begun(cell: Cell) -> int:
    """Return how many epochs the members have begun since they started."""
    return sum(len(member.logged("new epoch")) for member in cell.members)


def test_consumers_refill_a_memcached_that_was_killed(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    """I5: an empty store is a loss and never "no nodes". Consumers hold all nodes, so they need not ask the agents."""
    with cell_of(memcached.url) as cell:
        cell.watch()
        before, answers = epochs_begun(cell), cell.fleet.answers
        memcached.kill()
        wait_until(lambda: cell.read("journal").age > cell.bound_s, "the views do not age")
        memcached.start()
        cell.wait_until_recovered("after memcached was away and came back empty")
        assert epochs_begun(cell) - before == 2 * cell.config.partitions
        assert cell.fleet.answers == answers


def test_flushed_store_and_each_kind_of_lost_key_is_noticed_and_repaired(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5, for each kind of key alone: deleted, and damaged. Warm and cold readers watch all the time."""
    with cell_of(memcached.url) as cell, KeySpace(cell.config, memcached.address) as space:
        cell.watch()
        space.flush_all()
        cell.wait_until_recovered("after flush_all")
        node = cell.fleet.names[0]
        number = partition_of(node, cell.config.partitions)
        for design, kind, lose in losses(space):
            wait_until(partial(space.intact, design, number, kind, node), f"there is no {kind} to lose")
            lose(space.key(design, number, kind, node))
            seconds = cell.wait_until_well_for_cold_readers()
            cell.require_no_violations()
            cell.record(f"{design}'s {kind} {lose.__name__}: whole for cold readers after {seconds:.1f} s")
        cell.wait_until_recovered("after all of them")


def losses(space: KeySpace) -> list[tuple[str, str, Callable[[str], None]]]:
    """Return design and kind of each key, with a way to lose it; in the thorough profile with both ways."""
    both = [(design, kind, lose) for design, kind in KINDS_OF_KEYS for lose in (space.delete, space.corrupt)]
    return by_profile(fast=[loss for at, loss in enumerate(both) if at % 4 in (0, 3)], thorough=both)


def test_server_that_is_away_affects_its_own_partitions_only(
    cell_of: CellFactory, memcached: MemcachedServer, memcached_factory: MemcachedFactory
) -> None:
    """Each partition stays on its server: while one server is away, the partitions of the other one are confirmed again
    and again, and no partition moves.
    """
    other = memcached_factory()
    affected = {1, 3, 5, 7}
    with cell_of(f"{memcached.url},{other.address}", bound_s=2.5, store_timeout_s=0.3) as cell:
        cell.watch()
        for name, go_away, come_back in (("killed", other.kill, other.start), ("frozen", other.pause, other.resume)):
            go_away()
            away_at = time.monotonic()

            def stale_partitions() -> set[int]:
                return {partition_of(node, 8) for d in DESIGNS for node in cell.read(d, cell.bound_s).stale}

            def confirmed_since(moment: float) -> set[int]:
                states = [state for d in DESIGNS for state in cell.read(d).partitions]
                late = {state.partition for state in states if state.confirmed_at <= moment}
                return set(range(8)) - late

            wait_until(lambda: stale_partitions() >= affected, "the server's partitions do not become stale")
            stale_at = time.monotonic()
            for _ in range(2):
                now = time.monotonic()
                wait_until(
                    lambda now=now: confirmed_since(now) == set(range(8)) - affected, "the others are not confirmed"
                )
            assert not confirmed_since(away_at) & affected
            come_back()
            cell.wait_until_recovered(
                f"one of two servers {name}, its partitions stale after {stale_at - away_at:.1f} s"
            )
        other.close()


def test_readers_of_a_memcached_that_is_too_small_miss_what_it_evicts(
    cell_of: CellFactory, memcached_factory: MemcachedFactory
) -> None:
    """I5: readers notice each evicted item that they need. With less to store the cell is well again."""
    small = memcached_factory(memory_mb=8)
    with cell_of(small.url, rate=100.0) as cell, KeySpace(cell.config, small.address) as space:
        cell.watch()
        assert space.evictions() == 0
        cell.fleet.call(lambda: grow(cell, 60_000))
        wait_until(lambda: space.evictions() > 100, "nothing is evicted")
        wait_until(
            lambda: any(watcher.refused for watcher in cell.watchers), "items are evicted, yet views are complete"
        )
        cell.wait_for_checked_reads(20)
        cell.require_no_violations()
        evicted = space.evictions()
        cell.fleet.call(lambda: grow(cell, 0))
        cell.wait_until_recovered(f"after {evicted} evictions, with less to store")
        small.close()


def grow(cell: Cell, pad_bytes: int) -> None:
    """Make every node's state larger by this many bytes; called in the fleet's thread."""
    cell.fleet.pad_bytes = pad_bytes
    for name in cell.fleet.names:
        cell.fleet.publishers[name].report(cell.fleet.state(name))


def test_full_memcached_is_reported_and_keeps_all_states(
    cell_of: CellFactory, memcached_factory: MemcachedFactory
) -> None:
    """Under ``-M``: the error names server and key, events stay unacked, and no stored state is lost."""
    full = memcached_factory(memory_mb=16, no_evict=True)
    bigger = memcached_factory(memory_mb=64, no_evict=True)
    with (
        TcpProxy(("127.0.0.1", full.port)) as proxy,
        cell_of(proxy.url) as cell,
        KeySpace(cell.config, full.address) as space,
    ):
        cell.watch()
        filled = space.fill()
        before = {design: versions(cell.read_cold(design)) for design in DESIGNS}
        assert all(len(there) == len(cell.fleet.names) for there in before.values())
        cell.fleet.call(lambda: grow(cell, 3_000))
        # Of a member that owns partitions: on a busy machine one member may own all of them.
        wait_until(lambda: any(full_errors(member) for member in cell.members), "no member reports a full server")
        wait_until(lambda: all(cell.read(d).age > cell.bound_s for d in DESIGNS), "the views do not age")
        cell.wait_for_checked_reads(20)
        for design in DESIGNS:
            now = versions(cell.read_cold(design))
            assert now.keys() == before[design].keys()
            assert all(now[name] >= version for name, version in before[design].items())
        errors = {error for member in cell.members for error in full_errors(member)}
        assert all(proxy.url.removeprefix("memcached://") in error for error in errors), errors
        assert all(f"ns:{cell.config.cell}:" in error for error in errors), errors
        space.free(filled)
        cell.wait_until_recovered("after room was made in the same server")

        filled = space.fill()
        cell.fleet.call(lambda: grow(cell, 9_000))
        wait_until(lambda: all(cell.read(d).age > cell.bound_s for d in DESIGNS), "the views do not age")
        proxy.target = ("127.0.0.1", bigger.port)
        proxy.cut()
        cell.wait_until_recovered("after a restart with more memory")
    full.close()
    bigger.close()


def versions(view: View) -> dict[str, Version]:
    """Return the version of each node in a view."""
    return {record.name: record.version for record in view.nodes.records()}


def full_errors(member: Member) -> list[str]:
    """Return the errors that a member logged because the server was full."""
    return [entry["reason"] for entry in member.logged("operation is failing") if "no memory left" in entry["reason"]]


TOO_BIG = {
    "inventory": {f"CUSTOM_{number:03}_" + "X" * 240: {"total": 1} for number in range(90)},
    "namespaces": {"test": {"pad": "x" * 220_000}},
}
"""A patch to a state that fits into an event but, with its columns, not into an item of 256 KB."""
TOO_LONG = {"metrics": {f"{number:04}" + "x" * 240: None for number in range(1_058)}}
"""A patch that changes nothing and fits into an event but not into a segment."""


def test_event_over_the_item_limit_is_dead_lettered_and_the_old_state_stays(
    cell_of: CellFactory, memcached_factory: MemcachedFactory
) -> None:
    """I5 and I6: other nodes are not affected. The node's last good state stays, marked as not the newest, until the
    agent's next report fits.
    """
    strict = memcached_factory(item_max="256k", extra=("-o", "slab_chunk_max=256"))
    with cell_of(strict.url) as cell:
        cell.watch()
        fleet, (node, other) = cell.fleet, cell.fleet.names[7:9]
        partitions = {partition_of(name, cell.config.partitions) for name in (node, other)}

        def report_and_change(name: str, patch: dict[str, Any]) -> tuple[Version, dict[str, Any]]:
            publisher = fleet.publishers[name]
            publisher.report(fleet.state(name))
            good, state = publisher.version, publisher.state()
            publisher.change(patch)
            return good, state

        fleet.unchanging = {node, other}
        fleet.call(lambda: report_and_change(other, TOO_LONG))
        good, state = fleet.call(lambda: report_and_change(node, TOO_BIG))
        wait_until(lambda: {letter.partition for letter in too_large(cell)} == partitions, "there are no dead letters")
        wait_until(
            lambda: all(cell.read(d).incomplete == {node} for d in DESIGNS),
            "the node whose newest state is missing, and no other, is named as incomplete",
        )
        for design in DESIGNS:
            record = cell.read(design).nodes.record(node)
            assert record is not None
            assert record.version == good
            assert record.state() == state
        letters = too_large(cell)
        assert all("-I" in letter.detail for letter in letters)
        fleet.unchanging = set()
        fleet.call(lambda: fleet.publishers[node].report(fleet.state(node)))
        cell.wait_until_recovered(f"after states over the item limit ({len(letters)} dead letters)")
        strict.close()


def too_large(cell: Cell) -> list[DeadLetter]:
    """Return the dead letters that were too large."""
    return [letter for letter in read_dead_letters(cell.config, 1_000) if letter.reason == "too-large"]
