"""Views of several cells: each cell answers for itself, and all of them together as one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.waiting import wait_until
from nodestate import CellNode, Config, MultiCellReader, MultiCellView, Reader
from nodestate.agent.publisher import Publisher
from nodestate.consumers.loop import Consumer
from nodestate.designs.connections import open_stores
from nodestate.errors import StaleViewError
from nodestate.model import NodeRecord
from nodestate.model.partitioning import partition_of
from nodestate.ports import SystemClock
from nodestate.scheduling import Scheduler
from nodestate.store.round_trips import Stores
from nodestate.testing import FaultyStore, ManualClock, MemoryBroker, MemoryStore
from nodestate.view.columns import ColumnStore
from nodestate.view.follower import PartitionState
from nodestate.view.view import View
from tests.conftest import MemcachedFactory
from tests.machines.simulated_cell import SimulatedCell
from tests.tables import table_of

SHARED = ("node-0", "node-1", "node-2")


class Site:
    """Two cells that share a clock and have nodes of the same names, and a reader of both."""

    def __init__(self, design: str) -> None:
        clock = ManualClock()
        self.cells = {name: SimulatedCell(seed=seed, designs=(design,), clock=clock) for seed, name in enumerate("ab")}
        for number, (name, cell) in enumerate(self.cells.items()):
            cell.start_member([0, 1], [])
            for node in (*SHARED, f"only-{name}"):
                cell.start_agent(node, {"usage": {"VCPU": 1 + number}})
        self.fetches: list[str] = []
        self.reader = MultiCellReader({name: self.open(name) for name in self.cells}, clock=clock)
        self.clock = clock
        self.run_well(60)

    def open(self, name: str) -> Reader:
        """Open a reader of one cell, whose fetches are counted."""
        cell = self.cells[name]
        wires = [FaultyStore(MemoryStore(server), lambda *_: self.fetches.append(name)) for server in cell.places]
        stores = Stores((), wires[0]) if cell.places[0] is cell.database else Stores(wires)
        return Reader(cell.config, stores=stores, clock=cell.clock)

    def run_well(self, seconds: float, *without: str) -> None:
        """Let time pass in both cells; the consumers of the cells in ``without`` do nothing."""
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.clock.advance(0.25)
            for name, cell in self.cells.items():
                cell.agents_act()
                for member in cell.members if name not in without else ():
                    member.step()


@pytest.fixture(params=["journal", "snapshot", "sql"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(request.param)


def test_nodes_of_the_same_name_are_two_nodes(site: Site) -> None:
    """A view with one namespace would show one of them, and which one would depend on the order of the cells."""
    view = site.reader.read(max_age=5.0, node_max_age=15.0)
    assert sorted(view.nodes) == sorted((cell, name) for cell in "ab" for name in (*SHARED, f"only-{cell}"))
    assert len(view.nodes) == 8
    assert view.nodes["a", "node-0"].state["usage"] == {"VCPU": 1}
    assert view.nodes[CellNode("b", "node-0")].state["usage"] == {"VCPU": 2}
    assert ("a", "only-b") not in view.nodes
    assert ("c", "node-0") not in view.nodes
    assert (view.cells_of("node-0"), view.cells_of("only-b"), view.cells_of("none")) == (("a", "b"), ("b",), ())
    assert view.cells["a"].nodes["node-0"].state["usage"] == {"VCPU": 1}


def test_each_cell_has_its_own_position_and_age_and_the_oldest_counts(site: Site) -> None:
    site.run_well(20, "b")
    view = site.reader.read(max_age=60.0, node_max_age=60.0)
    assert view.position == {"a": view.cells["a"].position, "b": view.cells["b"].position}
    assert view.cells["a"].age < 5
    assert 20 <= view.cells["b"].age == view.age
    assert view.node_age(("a", "node-1")) < 20 <= view.node_age(("b", "node-1"))


def test_one_cell_that_is_too_old_is_refused_left_out_or_named(site: Site) -> None:
    """A scheduler that may not mix two sources refuses all; others go on with the cells that are well."""
    site.run_well(20, "b")
    with pytest.raises(StaleViewError, match=r"^cell b: the view is 2.* s old in 2 partitions") as caught:
        site.reader.read(max_age=5.0)
    assert (caught.value.cell, caught.value.partitions, caught.value.max_age) == ("b", (0, 1), 5.0)
    assert site.reader.readers["b"].stats.refusals["stale-view"] == 1
    assert site.reader.readers["a"].stats.refusals["stale-view"] == 0
    of_b = {("b", name) for name in (*SHARED, "only-b")}
    excluding = site.reader.read(max_age=5.0, on_stale="exclude")
    assert (set(excluding.nodes), excluding.stale) == ({("a", name) for name in (*SHARED, "only-a")}, of_b)
    assert excluding.left_out == of_b
    flagging = site.reader.read(max_age=5.0, on_stale="flag")
    assert (len(flagging.nodes), flagging.stale, flagging.left_out) == (8, of_b, frozenset())


def test_a_silent_node_of_one_cell_is_named_with_its_cell(site: Site) -> None:
    """Its namesake in the other cell is well."""
    del site.cells["b"].agents["node-1"]
    site.run_well(60)
    view = site.reader.read(max_age=5.0, node_max_age=15.0, on_unresponsive="flag")
    assert view.stale == {("b", "node-1")}
    with pytest.raises(StaleViewError, match=r"^cell b: 1 node ") as caught:
        site.reader.read(max_age=5.0, node_max_age=15.0)
    assert (caught.value.cell, caught.value.nodes) == ("b", ("node-1",))


def test_incomplete_nodes_and_partitions_are_named_with_their_cell(site: Site) -> None:
    cell = site.cells["a"]
    publisher = cell.agents["node-0"].publisher
    number = partition_of("node-0", 2)
    publisher.change({"usage": {"VCPU": 5}})
    cell.lose_message(number, 0)
    publisher.change({"usage": {"VCPU": 6}})
    cell.members[0].step()
    assert site.reader.read(max_age=60.0).incomplete == {("a", "node-0")}
    for place in site.cells["b"].places:
        place.stop()
    view = site.reader.read(max_age=60.0)
    assert view.incomplete == {("a", "node-0"), ("b", "partition 0"), ("b", "partition 1")}
    assert len(view.nodes) == 8, "a cell that cannot be reached keeps its nodes, and ages"


def test_changes_are_those_of_each_cell(site: Site) -> None:
    before = site.reader.read(max_age=5.0)
    site.cells["b"].agents["node-2"].publisher.change({"usage": {"VCPU": 7}})
    site.run_well(1)
    now = site.reader.read(max_age=5.0)
    assert now.changed_since(before) == {("b", "node-2")}
    alone = MultiCellView({"a": now.cells["a"]})
    assert alone.changed_since(now) == now.changed_since(alone) == {("b", name) for name in (*SHARED, "only-b")}


def test_a_wait_ends_when_all_cells_are_within_the_bound_at_the_same_time(site: Site) -> None:
    """Cells that are fresh one after the other are not: the first one ages while the read waits for the second one."""
    site.run_well(20, "b")
    slept = iter(range(1_000))

    def step_other_cell(_s: float) -> None:
        """While the read waits, the consumers of b come back, and later the consumers of a."""
        number = next(slept)
        site.run_well(0.25, *(["a"] if number < 40 else []), *(["b"] if number < 20 else []))

    site.reader._clock = Waiting(site.clock, step_other_cell)
    view = site.reader.read(max_age=5.0, timeout=60.0)
    assert max(view.cells["a"].age, view.cells["b"].age) <= 5.0
    assert next(slept) > 40
    with pytest.raises(StaleViewError):
        site.reader.read(max_age=0.0, timeout=1.0)


class Waiting:
    """A clock on which waiting lets the cells act."""

    def __init__(self, clock: ManualClock, act: Callable[[float], None]) -> None:
        self._clock, self._act = clock, act

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def time(self) -> float:
        return self._clock.time()

    def sleep(self, seconds: float) -> None:
        self._act(seconds)


def test_a_read_costs_one_read_of_each_cell(site: Site) -> None:
    """Neither judging all cells together nor the other cells cause another round trip."""
    alone = {name: site.open(name) for name in site.cells}
    for change in (False, True, False):
        for cell in site.cells.values() if change else ():
            cell.agents["node-1"].publisher.change({"usage": {"VCPU": 9}})
        site.run_well(1)
        counts = []
        for read in (
            lambda: [reader.read(max_age=5.0, node_max_age=15.0) for reader in alone.values()],
            lambda: [site.reader.read(max_age=5.0, node_max_age=15.0)],
        ):
            site.fetches.clear()
            read()
            counts.append(sorted(site.fetches))
        assert counts[0] == counts[1], "the first reads load everything, the later ones only what changed"


def test_a_bound_is_needed_and_a_reader_of_no_cell_is_refused(site: Site) -> None:
    with pytest.raises(TypeError, match="max_age"):
        site.reader.read()
    with pytest.raises(TypeError, match="on_stale"):
        site.reader.read(max_age=1.0, on_stale="whatever")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        MultiCellReader({})


def test_a_scheduler_takes_the_reader_of_its_cell(site: Site) -> None:
    """Claims and orders belong to one cell, so one scheduler cannot place on nodes of two."""
    config = site.cells["a"].config
    with pytest.raises(TypeError, match=r"give it the reader of its cell, such as readers\['a'\]"):
        Scheduler(config, reader=site.reader, claims=[MemoryStore()])  # type: ignore[arg-type]
    scheduler = Scheduler(config, reader=site.reader.readers["a"], claims=[MemoryStore()], clock=site.clock)
    assert sorted(scheduler.refresher.refresh().nodes) == [*SHARED, "only-a"]


ages = st.floats(0.0, 20.0)
bounds = st.none() | st.sampled_from([0.0, 5.0, 10.0])
decisions = st.sampled_from(["exclude", "refuse", "flag"])


@given(
    cells=st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.lists(st.tuples(ages, ages), min_size=1, max_size=3), min_size=1
    ),
    max_age=bounds,
    node_max_age=bounds,
    on_stale=decisions,
    on_unresponsive=st.none() | decisions,
)
def test_the_whole_is_the_sum_of_its_cells(
    cells: dict[str, list[tuple[float, float]]],
    max_age: float | None,
    node_max_age: float | None,
    on_stale: str,
    on_unresponsive: str | None,
) -> None:
    """Each answer about all cells is computed from the answers of each cell alone, also if one of them refuses."""
    clock = ManualClock()
    now = clock.monotonic()
    views = {}
    for cell, partitions in cells.items():
        states = []
        for number, (age, node_age) in enumerate(partitions):
            name = f"n{number}"
            record = NodeRecord(name, 1, 1, 1, 1 + (age > 15), 0.0, False, "up", "", b"", b"", b"", b"\x80")
            table, heard_at = table_of(number + 1, 1, [record]), [now - node_age]
            states.append(PartitionState(number, table, now - age, True, "", heard_at))  # type: ignore[arg-type]
        views[cell] = View("journal", tuple(states), frozenset(), (), ColumnStore(), clock)
    arguments = (max_age, node_max_age, on_stale, on_unresponsive)
    refused, alone = [], {}
    for cell, view in views.items():
        try:
            alone[cell] = view.bounded(*arguments)  # type: ignore[arg-type]
        except StaleViewError:
            refused.append(cell)
    if refused:
        with pytest.raises(StaleViewError) as caught:
            MultiCellView(views).bounded(*arguments)  # type: ignore[arg-type]
        assert caught.value.cell == refused[0]
        return
    whole = MultiCellView(views).bounded(*arguments)  # type: ignore[arg-type]
    assert whole.age == max(view.age for view in alone.values())
    for kind in ("stale", "incomplete", "left_out", "nodes"):
        assert set(getattr(whole, kind)) == {
            (cell, name) for cell, view in alone.items() for name in getattr(view, kind)
        }


@pytest.mark.service
def test_two_cells_on_their_own_memcached_servers_are_one_view(
    memcached_factory: MemcachedFactory, opened: Callable[[Any], Any]
) -> None:
    """As a scheduler of two Nova cells reads them: one of the servers dies, and only its cell ages."""
    clock = SystemClock()
    servers = {name: memcached_factory() for name in ("cell1", "cell2")}
    configs = {name: Config(cell=name, partitions=2, store=server.url, renew_s=0.2) for name, server in servers.items()}
    brokers = {name: MemoryBroker(2) for name in configs}
    members = []
    for name, config in configs.items():
        stores = opened(open_stores(config, clock, config.designs))
        broker = brokers[name]
        members.append(Consumer(config, broker.source([0, 1]), stores, broker, clock, random.Random(1), name))
        publisher = Publisher(config, "compute-1", sink=broker.sink(), clock=clock, incarnation=1_763_787_600)
        publisher.report({"zone": name})

    def stepped(reader: MultiCellReader) -> MultiCellView:
        for member in members:
            member.step()
        return reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")

    with MultiCellReader({name: Reader(config) for name, config in configs.items()}) as reader:
        wait_until(lambda: stepped(reader).age < 60, "both cells are confirmed")
        view = reader.read(max_age=60.0)
        assert [view.nodes[name, "compute-1"].state["zone"] for name in servers] == ["cell1", "cell2"]
        servers["cell2"].kill()
        wait_until(lambda: stepped(reader).cells["cell2"].age > 5, "the view of the cell without a server ages")
        view = reader.read(max_age=5.0, on_stale="exclude")
        assert set(view.nodes) == {("cell1", "compute-1")}
        assert {("cell2", "partition 0"), ("cell2", "partition 1")} <= view.incomplete
