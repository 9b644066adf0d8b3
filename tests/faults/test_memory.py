"""A memcached that forgets, fills up, or goes away: readers are right or refuse, and what was lost comes back."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from harness.cell import DESIGNS, Cell
from harness.keyspace import KeySpace
from harness.members import Member
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


def begins(cell: Cell) -> int:
    """Epochs that were begun since the members started."""
    return sum(len(member.logged("new epoch")) for member in cell.members)


def test_a_killed_memcached_is_filled_again_from_its_consumers(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: empty is a loss and never "no nodes". Consumers hold all nodes, so no agent need be asked."""
    with cell_of(memcached.url) as cell:
        cell.watch()
        before, answers = begins(cell), cell.fleet.answers
        memcached.kill()
        wait_until(lambda: cell.read("journal").age > cell.bound_s, "the view does not age")
        memcached.start()
        cell.wait_until_recovered("after memcached was away and came back empty")
        assert begins(cell) - before == 2 * cell.config.partitions
        assert cell.fleet.answers == answers


def test_everything_flushed_or_lost_key_by_key_is_seen_and_healed(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5, for each kind of key alone: gone, and damaged. Cold readers look all the time, and warm ones."""
    with cell_of(memcached.url) as cell, KeySpace(cell.config, memcached.address) as space:
        cell.watch()
        space.flush_all()
        cell.wait_until_recovered("after flush_all")
        node = cell.fleet.names[0]
        number = partition_of(node, cell.config.partitions)
        kinds = [("journal", kind) for kind in ("epoch", "head", "life", "segment", "checkpoint")]
        kinds += [("snapshot", kind) for kind in ("epoch", "head", "life", "node", "index")]
        for design, kind in kinds:
            for lose in (space.delete, space.corrupt):
                wait_until(partial(space.intact, design, number, kind, node), f"there is no {kind} to lose")
                lose(space.key(design, number, kind, node))
                seconds = cell.wait_until_well_for_cold_readers()
                cell.require_no_violations()
                cell.record(f"{design}'s {kind} {lose.__name__}: whole for cold readers after {seconds:.1f} s")
        cell.wait_until_recovered("after all of them")


def test_a_server_that_is_away_costs_its_own_partitions_only(
    cell_of: CellFactory, memcached: MemcachedServer, memcached_factory: MemcachedFactory
) -> None:
    """Partitions live on fixed servers: an outage is neither a miss nor a move, and others stay as fresh as ever."""
    other = memcached_factory()
    with cell_of(f"{memcached.url},{other.address}", bound_s=2.5, store_timeout_s=0.3) as cell:
        cell.watch()
        for name, away, back in (("killed", other.kill, other.start), ("frozen", other.pause, other.resume)):
            for watcher in cell.watchers:
                watcher.oldest_of.clear()
            away()
            wait_until(lambda: all(cell.read(d).age > 3 * cell.bound_s for d in DESIGNS), "the views do not age")
            oldest = {p: max(w.oldest_of.get(p, 0.0) for w in cell.watchers if not w.cold) for p in range(8)}
            view = cell.read("snapshot", cell.bound_s)
            back()
            assert {partition_of(node, 8) % 2 for node in view.stale} == {1}
            away_s, there_s = min(oldest[p] for p in (1, 3, 5, 7)), max(oldest[p] for p in (0, 2, 4, 6))
            assert there_s < cell.bound_s < away_s, oldest
            cell.wait_until_recovered(
                f"one of two servers {name} for {away_s:.1f} s (the other's partitions at most {there_s:.1f} s old)"
            )
        other.close()


def test_a_memcached_that_is_too_small_evicts_and_never_passes_that_for_fresh(
    cell_of: CellFactory, memcached_factory: MemcachedFactory
) -> None:
    """I5 under pressure: whatever is evicted is missed. With less to hold, the cell is well again."""
    small = memcached_factory(memory_mb=8)
    with cell_of(small.url, rate=100.0) as cell, KeySpace(cell.config, small.address) as space:
        cell.watch()
        assert space.evictions() == 0
        cell.fleet.call(lambda: grow(cell, 60_000))
        wait_until(lambda: space.evictions() > 100, "nothing is evicted")
        time.sleep(5.0)
        refused = set().union(*(watcher.refused for watcher in cell.watchers))
        assert refused, "evictions, and every view was complete"
        cell.require_no_violations()
        evicted = space.evictions()
        cell.fleet.call(lambda: grow(cell, 0))
        cell.wait_until_recovered(f"after {evicted} evictions, with less to hold")
        small.close()


def grow(cell: Cell, pad_bytes: int) -> None:
    """Let every node's state be of this size, in the fleet's thread."""
    cell.fleet.pad_bytes = pad_bytes
    for name in cell.fleet.names:
        cell.fleet.publishers[name].report(cell.fleet.state(name))


def test_a_full_memcached_says_so_and_keeps_what_it_had(
    cell_of: CellFactory, memcached_factory: MemcachedFactory
) -> None:
    """Under ``-M``: the error names server and key, events wait unacked, nothing that was there is lost."""
    full = memcached_factory(memory_mb=16, no_evict=True)
    bigger = memcached_factory(memory_mb=64, no_evict=True)
    with (
        TcpProxy(("127.0.0.1", full.port)) as relay,
        cell_of(relay.url) as cell,
        KeySpace(cell.config, full.address) as space,
    ):
        cell.watch()
        taken = space.fill()
        had = {design: versions(cell.read_cold(design)) for design in DESIGNS}
        assert all(len(there) == len(cell.fleet.names) for there in had.values())
        cell.fleet.call(lambda: grow(cell, 3_000))
        # Of whoever holds partitions: on a busy machine that may be one of them alone.
        wait_until(lambda: any(complaints(member) for member in cell.members), "nobody complains of a full server")
        wait_until(lambda: all(cell.read(d).age > cell.bound_s for d in DESIGNS), "the view does not age")
        time.sleep(2.0)
        for design in DESIGNS:
            now = versions(cell.read_cold(design))
            assert now.keys() == had[design].keys()
            assert all(now[name] >= version for name, version in had[design].items())
        whys = {why for member in cell.members for why in complaints(member)}
        assert all(relay.url.removeprefix("memcached://") in why for why in whys), whys
        assert all(f"ns:{cell.config.cell}:" in why for why in whys), whys
        space.free(taken)
        cell.wait_until_recovered("after room was made in the same server")

        taken = space.fill()
        cell.fleet.call(lambda: grow(cell, 9_000))
        wait_until(lambda: all(cell.read(d).age > cell.bound_s for d in DESIGNS), "the view does not age")
        relay.target = ("127.0.0.1", bigger.port)
        relay.cut()
        cell.wait_until_recovered("after a restart with more memory")
    full.close()
    bigger.close()


def versions(view: View) -> dict[str, Version]:
    """Which state of each node it has."""
    return {record.name: record.version for record in view.nodes.records()}


def complaints(member: Member) -> list[str]:
    """Why a member could not write, where the server was full."""
    return [entry["reason"] for entry in member.logged("operation is failing") if "no memory left" in entry["reason"]]


TOO_BIG = {
    "inventory": {f"CUSTOM_{number:03}_" + "X" * 240: {"total": 1} for number in range(90)},
    "namespaces": {"test": {"pad": "x" * 220_000}},
}
"""A patch that leads to a state that fits an event, and with its columns no item of 256 KB."""
TOO_LONG = {"metrics": {f"{number:04}" + "x" * 240: None for number in range(1_058)}}
"""A patch that changes nothing, fits an event, and no segment."""


def test_what_is_over_the_item_limit_goes_to_the_dead_letters_and_the_old_state_stays(
    cell_of: CellFactory, memcached_factory: MemcachedFactory
) -> None:
    """I5 and I6: one node's bad luck stops nobody else. Its last good state stays, marked as not the newest; and if
    the agent's next report fits, that is all.
    """
    strict = memcached_factory(item_max="256k", extra=("-o", "slab_chunk_max=256"))
    with cell_of(strict.url) as cell:
        cell.watch()
        fleet, (node, other) = cell.fleet, cell.fleet.names[7:9]
        partitions = {partition_of(name, cell.config.partitions) for name in (node, other)}

        def report_then(name: str, patch: dict[str, Any]) -> tuple[Version, dict[str, Any]]:
            publisher = fleet.publishers[name]
            publisher.report(fleet.state(name))
            good, state = publisher.version, publisher.state()
            publisher.change(patch)
            return good, state

        fleet.unchanging = {node, other}
        fleet.call(lambda: report_then(other, TOO_LONG))
        good, state = fleet.call(lambda: report_then(node, TOO_BIG))
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
    """What was given up because it does not fit."""
    return [letter for letter in read_dead_letters(cell.config, 1_000) if letter.reason == "too-large"]
