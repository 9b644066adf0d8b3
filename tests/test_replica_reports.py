"""The words of commands on two replicas while both servers run, while one is away, and while it is filled again."""

from __future__ import annotations

import math
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.servers import MemcachedServer
from nodestate.cli import main
from nodestate.cli.check import compare
from nodestate.cli.top import _renderable
from nodestate.config import load
from nodestate.designs.connections import open_stores
from nodestate.designs.control import record_from_settings
from nodestate.designs.control_store import ControlStore
from nodestate.designs.inspection import DesignStatus, HeadStatus, head_status, out_of_sync, replica_pairs
from nodestate.designs.reader import Reader
from nodestate.errors import StoreUnavailableError
from nodestate.findings.design_checks import examine_design, examine_replicas
from nodestate.findings.finding import FAIL, OK, WARN
from nodestate.findings.store_checks import start_finding
from nodestate.ports import Item, SystemClock
from nodestate.store.head import Head
from nodestate.testing import MemoryStore
from nodestate.view.view import View
from tests.conftest import MemcachedFactory
from tests.machines.simulated_cell import SimulatedCell
from tests.test_replicas import NODES, begun, stored_head


@pytest.fixture
def world() -> SimulatedCell:
    """See ``tests.test_replicas``."""
    return begun("snapshot")


def view_of(cell: SimulatedCell, replica: int) -> View:
    """A view of one replica, as a new reader of a command reads it."""
    _, stores = cell.connected(MemoryStore)
    name = cell.config.designs[replica]
    return Reader(cell.config, design=name, stores=stores, clock=cell.clock).read(max_age=math.inf, on_stale="flag")


def status_of(cell: SimulatedCell, replica: int) -> DesignStatus:
    """The status of one replica as commands inspect it."""
    heads: list[HeadStatus | str] = []
    for partition in (0, 1):
        found: tuple[Head, Item] | StoreUnavailableError | None
        try:
            found = stored_head(cell, partition, replica)
        except StoreUnavailableError as error:
            found = error
        heads.append(head_status(found, MemoryStore(cell.servers[replica]), cell.clock.monotonic()))
    return DesignStatus(cell.config.designs[replica], view_of(cell, replica), 0.0, heads)


def statuses_of(cell: SimulatedCell) -> tuple[DesignStatus, DesignStatus]:
    """The status of each replica."""
    return status_of(cell, 0), status_of(cell, 1)


def test_doctor_says_once_for_both_replicas_whether_they_are_in_sync(world: SimulatedCell) -> None:
    """Regression: each replica had a line, and one of them said that the other one is not in sync, and not why."""
    first, other = statuses_of(world)
    assert replica_pairs([other, first]) == [(first, other)]
    [well] = examine_replicas(first, other)
    assert (well.level, well.says) == (OK, "snapshot and snapshot_replica are in sync in 2 of 2 partitions")

    world.servers[1].stop()
    world.run_well(5)
    first, other = statuses_of(world)
    [alone] = examine_replicas(first, other)
    assert alone.level == WARN
    assert alone.says.startswith("2 of 2 partitions of snapshot have one replica in sync, for example 0: snapshot_rep")
    assert "does not answer" in alone.says
    assert "Start this one again" in alone.advice
    for one, partner in ((first, other), (other, first)):
        assert not [finding for finding in examine_design(world.config, one, partner) if finding.level != OK]

    world.servers[0].stop()
    first, other = statuses_of(world)
    assert FAIL in [finding.level for finding in examine_design(world.config, first, other)]
    assert not list(examine_replicas(first, other)), "of partitions without any head nothing is known"


def test_replica_that_answers_with_old_contents_is_not_in_sync(world: SimulatedCell) -> None:
    """Its head still says that both were in sync. The head of the other one knows better."""
    world.servers[1].stop()
    world.run_well(5)
    world.servers[1].start()
    first, other = statuses_of(world)
    assert out_of_sync(first, other) == {0: "snapshot_replica is not in sync", 1: "snapshot is not in sync"}
    [finding] = examine_replicas(first, other)
    assert "consumers fill the replica within seconds" in finding.advice
    world.run_well(5)
    assert out_of_sync(*statuses_of(world)) == {}


def test_nodes_of_a_partition_that_cannot_be_read_are_no_differences(world: SimulatedCell) -> None:
    """Regression: while one server was away, 'verify' and 'check' called nodes on it missed and redundant."""

    def views() -> dict[str, View]:
        return {name: view_of(world, number) for number, name in enumerate(world.config.designs)}

    world.servers[1].stop()
    world.run_well(5)
    verdict = compare(views, timeout=0.0)
    [comparison] = verdict.comparisons
    assert comparison.suspects.keys() == set(NODES)
    assert not verdict.agree, "a partition can't be read"
    assert verdict.found(comparison) == {}


def test_difference_in_a_partition_that_can_be_read_is_found_while_another_one_cannot(world: SimulatedCell) -> None:
    whole = view_of(world, 0)
    world.servers[1].stop()
    world.run_well(5)
    half = view_of(world, 0)
    world.servers[1].start()
    world.run_well(5)
    gone = next(name for name in NODES if name in half.nodes)
    world.agents[gone].publisher.leave()
    world.run_well(5)
    verdict = compare(lambda: {"snapshot": half, "snapshot_replica": view_of(world, 1)}, timeout=0.0)
    assert verdict.found(verdict.comparisons[0]).keys() == {gone}
    assert len(whole.nodes) == len(NODES)


def test_top_shows_replicas_in_a_table_of_their_own_and_says_why_a_head_is_absent(world: SimulatedCell) -> None:
    """Regression: four designs side by side were too wide, and an owner was doubted whose server was away."""

    def shown() -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(_renderable(statuses_of(world)))
        return captured.get()

    well = shown()
    assert well.count("in sync") == 2, "a column of each table"
    assert "…" not in well
    assert "may not know" not in well
    world.servers[1].stop()
    world.run_well(5)
    lines = shown().splitlines()
    assert "1 partition can't be read" in lines[0]
    assert "never" not in "".join(lines)
    assert not any("may not know" in line for line in lines)
    assert any(line.startswith("- snapshot: 1 partition without a head, for example 1: ") for line in lines)


def test_doctor_does_not_say_that_agents_report_again_if_consumers_fill_a_server_from_memory() -> None:
    """Regression: it said so of each server that had just started."""
    for changed_at in (0.0, 400.0):
        finding = start_finding("store m", 14, changed_at, 1_000.0)
        assert "consumers fill it from their memory within seconds" in f"{finding.says} {finding.advice}"


@pytest.mark.service
def test_status_and_verify_work_while_the_server_that_decides_on_the_record_is_away(
    memcached: MemcachedServer, memcached_factory: MemcachedFactory
) -> None:
    """Regression: with the first server away, they only said that it does not answer."""
    other = memcached_factory()
    store = f"{memcached.url},{other.address}"
    config = load(environ={}, flags={"store": store, "designs": "snapshot", "partitions": "2"})
    stores = open_stores(config, SystemClock(), ["snapshot"])
    copies, record = ControlStore(config.cell, stores), record_from_settings(config, time.time())
    assert copies.begin(record, copies.read())
    copies.put_back(record, copies.read())
    stores.close()
    memcached.kill()

    status = CliRunner().invoke(main, ["design", "status", "--store", store])
    assert status.exit_code == 0, status.output
    assert f"copy at {other.address}: version {record.version}" in status.output
    assert f"{memcached.address} decides on changes of the record" in status.output
    verify = CliRunner().invoke(main, ["design", "verify", "snapshot", "--store", store, "--timeout", "0.1"])
    assert verify.exit_code == 1
    assert "2 partitions can't be read" in verify.output
    other.close()
