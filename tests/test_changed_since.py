"""``View.changed_since``: the nodes that differ from an earlier view, at the cost of the changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from nodestate.designs.reader import Reader
from nodestate.model import NodeRecord
from nodestate.model.partitioning import partition_of
from nodestate.ports import SystemClock
from nodestate.testing import MemoryStore
from nodestate.view.chunked_list import CHUNK_SLOTS, GROUP_SLOTS
from nodestate.view.columns import ColumnStore
from nodestate.view.follower import PartitionState
from nodestate.view.table import Table
from nodestate.view.view import View
from tests.machines.simulated_cell import SimulatedCell
from tests.tables import advanced, table_of

NODES = [f"node-{n}" for n in range(12)]


def node(name: str, generation: int, *, gone: bool = False, known: bool = True, incomplete: bool = False) -> NodeRecord:
    """A record with this version; without a state if the node is gone or not known."""
    state = b"\x80" if known and not gone else b""
    return NodeRecord(name, 1, generation, 1, generation + incomplete, 0.0, gone, "up", "", b"", b"", b"", state)


def view_of(tables: list[Table | None], left_out: frozenset[str] = frozenset(), design: str = "journal") -> View:
    states = tuple(PartitionState(number, table, lost="") for number, table in enumerate(tables))
    return View(design, states, frozenset(), left_out, ColumnStore(), SystemClock())


def shown(view: View) -> dict[str, tuple[NodeRecord | None, bool, bool]]:
    """By name, everything that a view says of the node: its record, whether it is incomplete, whether left out."""
    found = {}
    for record in view.nodes.records():
        if record.live or record.name in view.incomplete or record.name in view.left_out:
            told = record if record.live else None
            found[record.name] = (told, record.name in view.incomplete, record.name in view.left_out)
    return found


def compared(before: View, now: View) -> set[str]:
    """The nodes that differ, found by looking at every node."""
    old, new = shown(before), shown(now)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


class ChangedSinceMachine(RuleBasedStateMachine):
    """Two partitions whose nodes change, appear, leave and become incomplete, and that begin again or are lost."""

    @initialize(size=st.sampled_from([0, 1, CHUNK_SLOTS, GROUP_SLOTS + 5]))
    def begin(self, size: int) -> None:
        self.generation = self.epoch = 1
        self.tables: list[Table | None] = [None, None]
        self.left_out: frozenset[str] = frozenset()
        self.views: list[View] = []
        for partition in (0, 1):
            self.begin_epoch(partition, size)
        self.look()

    @rule(partition=st.integers(0, 1), size=st.sampled_from([0, 3, CHUNK_SLOTS + 1]))
    def begin_epoch(self, partition: int, size: int) -> None:
        self.epoch += 1
        names = [f"p{partition}-{n}" for n in range(size)]
        self.tables[partition] = table_of(self.epoch, 1, [node(name, self.generation) for name in names])

    @rule(partition=st.integers(0, 1))
    def lose(self, partition: int) -> None:
        self.tables[partition] = None

    @rule(
        partition=st.integers(0, 1),
        slots=st.lists(st.integers(0, 3_000), max_size=5),
        new=st.sampled_from([0, 0, 1, CHUNK_SLOTS]),
        unread=st.lists(st.integers(0, 3_000), max_size=2),
        kind=st.sampled_from(["changed", "same", "gone", "unknown", "incomplete"]),
    )
    def change(self, partition: int, slots: list[int], new: int, unread: list[int], kind: str) -> None:
        table = self.tables[partition]
        if table is None:
            return
        self.generation += 1
        size = table.size
        updates = {size + n: node(f"p{partition}-{size + n}", 1) for n in range(new)}
        for slot in {slot % size for slot in slots if size}:
            old = table.at(slot)
            generation = old.generation if kind == "same" else self.generation
            flags = {kind: True} if kind in ("gone", "incomplete") else {"known": kind != "unknown"}
            updates[slot] = node(old.name, generation, **flags)
        lost = {table.names[slot % size] for slot in unread if size} - {one.name for one in updates.values()}
        self.tables[partition] = advanced(table, self.generation, updates, sorted(lost))

    @rule(picks=st.lists(st.integers(0, 3_000), max_size=3))
    def leave_out(self, picks: list[int]) -> None:
        names = [record.name for table in self.tables if table is not None for record in table.records() if record.live]
        self.left_out = frozenset(names[pick % len(names)] for pick in picks if names)

    @rule()
    def look(self) -> None:
        live = {record.name for table in self.tables if table is not None for record in table.records() if record.live}
        self.views.append(view_of(list(self.tables), self.left_out & live))
        self.compare(len(self.views) - 1, max(0, len(self.views) - 2))

    @rule(one=st.integers(0, 1_000), other=st.integers(0, 1_000))
    def compare(self, one: int, other: int) -> None:
        """Exact within an epoch, in either order of the views; all nodes of a partition that is of another epoch."""
        now, before = self.views[one % len(self.views)], self.views[other % len(self.views)]
        found, wanted = now.changed_since(before), compared(before, now)
        for number in (0, 1):
            old, new = before.partitions[number].table, now.partitions[number].table
            ours = {name for name in found if name.startswith(f"p{number}-")}
            theirs = {name for name in wanted if name.startswith(f"p{number}-")}
            if old is new or (old is not None and new is not None and old.epoch == new.epoch):
                assert ours == theirs
            else:
                assert ours >= theirs
                assert ours >= {r.name for table in (old, new) if table for r in table.records() if r.live}


TestChangedSince = ChangedSinceMachine.TestCase
TestChangedSince.settings = settings(settings(), stateful_step_count=14)


@pytest.fixture(params=["journal", "snapshot", "sql"])
def design(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(design: str) -> SimulatedCell:
    """A cell of two partitions that has run for a minute."""
    world = SimulatedCell(designs=("sql",) if design == "sql" else ("journal", "snapshot"))
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}})
    world.run_well(60)
    return world


@pytest.fixture
def reader(world: SimulatedCell, design: str) -> Reader:
    return Reader(world.config, design=design, stores=world.connected(MemoryStore)[1], clock=world.clock)


def copy_of(view: View) -> dict[str, Any]:
    return {name: (node.version, node.state) for name, node in view.nodes.items()}


def test_a_copy_that_follows_the_changes_equals_the_view(world: SimulatedCell, reader: Reader) -> None:
    """Nodes change, appear, leave and come back over forty seconds; heartbeats alone change nothing."""
    view = reader.read(max_age=5.0)
    copy = copy_of(view)
    for round_number in range(40):
        if round_number % 4 == 0:
            world.change_some(0.2)
        if round_number % 9 == 0:
            world.start_agent(f"node-new-{round_number}", {"usage": {"VCPU": 2}})
        if round_number == 20:
            world.agents["node-3"].publisher.leave()
        world.run_well(1)
        before, view = view, reader.read(max_age=5.0)
        changed = view.changed_since(before)
        assert changed == compared(before, view)
        for name in changed:
            if name in view.nodes:
                copy[name] = (view.nodes[name].version, view.nodes[name].state)
            else:
                copy.pop(name, None)
        assert copy == copy_of(view)
    assert "node-3" not in copy
    world.run_well(30)
    assert reader.read(max_age=5.0).changed_since(view) == set()


def test_all_nodes_are_named_if_the_store_lost_its_epoch(world: SimulatedCell, reader: Reader) -> None:
    """Their states may be equal, but the tables share nothing by which that could be told without reading all."""
    before = reader.read(max_age=5.0)
    for place in world.places:
        place.flush()
    world.run_well(60)
    now = reader.read(max_age=5.0)
    assert [a.epoch for a in now.position if a] != [b.epoch for b in before.position if b]
    assert now.changed_since(before) == set(NODES)


@pytest.mark.parametrize("design", ["journal", "snapshot"], indirect=True)
def test_only_the_partition_that_was_lost_names_all_of_its_nodes(world: SimulatedCell, reader: Reader) -> None:
    """The other partition, on another server, keeps its epoch."""
    before = reader.read(max_age=5.0)
    world.servers[1].flush()
    world.run_well(60)
    now = reader.read(max_age=5.0)
    assert now.changed_since(before) == {name for name in NODES if partition_of(name, 2) == 1}


def test_rows_that_say_the_same_or_show_no_node_are_not_named() -> None:
    """A repair writes equal rows again, and views show neither tombstones nor nodes without a state."""
    first = table_of(3, 1, [node("a", 1), node("b", 1), node("c", 1, gone=True), node("d", 0, known=False)])
    then = advanced(first, 2, {0: node("a", 1), 1: node("b", 2), 2: node("c", 2, gone=True), 3: node("d", 1)})
    last = advanced(then, 3, {3: node("d", 2, gone=True), 4: node("e", 1)})
    assert view_of([then]).changed_since(view_of([first])) == {"b", "d"}
    assert view_of([last]).changed_since(view_of([then])) == {"d", "e"}
    assert view_of([first]).changed_since(view_of([last])) == {"b", "e"}, "the views in the other order"


def test_views_of_two_designs_or_layouts_name_all_nodes_of_both() -> None:
    """Neither offsets nor slots can be compared."""
    tables: list[Table | None] = [
        table_of(3, 1, [node("a", 1)]),
        table_of(3, 1, [node("b", 1), node("c", 1, gone=True)]),
    ]
    view = view_of(tables)
    assert view_of(tables, design="snapshot").changed_since(view) == {"a", "b"}
    assert view_of([table_of(9, 1, [node("a", 1), node("d", 1)])]).changed_since(view) == {"a", "b", "d"}


def test_a_node_that_became_incomplete_is_named_and_again_when_it_is_complete(design: str) -> None:
    """Its state is the old one in the first view: a caller that may not use it learns of that."""
    world = SimulatedCell(designs=(design,))
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}})
    world.run_well(60)
    reader = Reader(world.config, design=design, stores=world.connected(MemoryStore)[1], clock=world.clock)
    first = reader.read(max_age=5.0)
    publisher = world.agents["node-4"].publisher
    publisher.change({"usage": {"VCPU": 2}})
    world.lose_message(partition_of("node-4", 2), 0)
    publisher.change({"usage": {"VCPU": 3}})
    world.members[0].step()
    second = reader.read(max_age=5.0)
    assert "node-4" in second.incomplete
    assert second.changed_since(first) == {"node-4"}
    world.run_well(30)
    third = reader.read(max_age=5.0)
    assert (third.incomplete, third.changed_since(second)) == (frozenset(), {"node-4"})


@pytest.mark.parametrize("nodes", [1_000, 50_000])
def test_the_cost_is_that_of_the_changes(nodes: int) -> None:
    """Three changed nodes cost the same decoded rows in a fleet that is fifty times larger."""
    decoded: list[bytes] = []

    def counting(decode: Callable[[bytes], NodeRecord]) -> Callable[[bytes], NodeRecord]:
        def count(row: bytes) -> NodeRecord:
            decoded.append(row)
            return decode(row)

        return count

    filled = table_of(7, 1, [node(f"n{slot}", 1) for slot in range(nodes)])
    table = Table(7, 1, nodes, filled.slots, filled.names, filled.rows, frozenset(), counting(filled.decode))
    slots = [1, 501, nodes - 1]
    later = advanced(table, 2, {slot: node(f"n{slot}", 2) for slot in slots})
    before, now = view_of([table]), view_of([later])
    assert now.changed_since(before) == {f"n{slot}" for slot in slots}
    assert len(decoded) == 2 * len(slots)
    decoded.clear()
    assert view_of([later]).changed_since(now) == set()
    assert decoded == []
