"""The fleet: after any history it equals a fleet that is made of the last view and the claims at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from nodestate.model import STATUSES, NodeRecord, Version
from nodestate.scheduling.fleet import Exclusion, Fleet, OutstandingClaims, PlacementMark
from nodestate.scheduling.fleet.node_columns import FIRST_ROWS
from nodestate.scheduling.order_ids import order_id_of
from nodestate.view.table import Table
from nodestate.view.view import View
from tests.scheduling.fleets import ChangingPartition, fleet_of, host, node, view_of_tables
from tests.tables import advanced, table_of

CLASSES = ["VCPU", "DISK_GB", "CUSTOM_GPU"]
INSTANCES = ["a", "b", "c", "d"]
GROUPS = [None, "web", "db"]
WORDS = ["w1", "w2", "w3"]

instances = st.sampled_from(INSTANCES)
amounts = st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 9), max_size=2)
marks = st.fixed_dictionaries(
    {},
    optional={
        "reservation": st.sampled_from(["r1", "r2"]),
        "members": st.integers(1, 3),
        "placed": st.booleans() | st.just("twice"),
        "boot": st.just("b1"),
        "zone": st.just("az1"),
    },
)
allocations = st.dictionaries(
    instances,
    st.fixed_dictionaries({"resources": amounts, "group": st.sampled_from(GROUPS), "hints": marks}),
    max_size=3,
)
states = st.none() | st.fixed_dictionaries(
    {
        "status": st.sampled_from(["up", "up", "up", *STATUSES]),
        "zone": st.sampled_from(["", "az1", "az2"]),
        "inventory": st.dictionaries(st.sampled_from(CLASSES), st.builds(lambda n: {"total": n}, st.integers(0, 9))),
        "usage": st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 9)),
        "traits": st.lists(st.sampled_from(WORDS), max_size=2),
        "aggregates": st.lists(st.sampled_from(WORDS), max_size=2),
        "allocations": allocations,
    }
)
outstandings = st.none() | st.builds(
    OutstandingClaims, amounts, st.dictionaries(instances, st.sampled_from(GROUPS), max_size=2), st.booleans()
)
numbers = st.integers(0, 1_000)


def row_of(fleet: Fleet, row: int, classes: Collection[str] = CLASSES) -> dict[str, Any]:
    """All that a fleet says of a row. A resource class of which the row has nothing, and nothing is claimed, is left
    out.
    """
    name = fleet.names[row]
    zones = {code: zone for zone, code in fleet.zones.items()}
    here = {
        "version": fleet.version[row],
        "usable": bool(fleet.usable[row]),
        "zone": zones[int(fleet.zone[row])],
        "traits": [word for word in WORDS if row in fleet.traits.rows_of(word, len(fleet))],
        "aggregates": [word for word in WORDS if row in fleet.aggregates.rows_of(word, len(fleet))],
        "groups": {group: counts[row] for group, counts in fleet.groups.items() if row in counts},
        "tenants": dict(fleet.instances.reported[row]),
        "here": [instance for instance in INSTANCES if row in fleet.instances.rows_with(instance)],
        "placement_marks": sorted(
            (g, i, mark)
            for g, marks in fleet.placement_marks.by_reservation.items()
            for (r, i), mark in marks.items()
            if r == row
        ),
        "amounts": {
            c: (int(fleet.amounts[c][0][row]), int(fleet.amounts[c][1][row]), int(fleet.free[c][row]))
            for c in classes
            if c in fleet.amounts and (fleet.amounts[c][:, row].any() or fleet.free[c][row])
        },
    }
    return {name: here}


def contents(fleet: Fleet, classes: Collection[str] = CLASSES) -> dict[str, Any]:
    """All that a fleet says, by node. A node that is gone is left out, like a node that was never seen."""
    rows = {name: here for row in range(len(fleet)) for name, here in row_of(fleet, row, classes).items()}
    nothing = row_of(fleet_of(node("nobody")), 0)["nobody"]
    rows = {name: here for name, here in rows.items() if {**here, "version": nothing["version"]} != nothing}
    doubled = {
        instance: sorted(fleet.names[row] for row in rows) for instance, rows in fleet.instances.duplicates().items()
    }
    return {
        "rows": rows,
        "doubled": doubled,
        "where": {i: sorted(fleet.names[row] for row in fleet.instances.rows_with(i)) for i in INSTANCES},
        "groups": {g: {fleet.names[row]: n for row, n in counts.items()} for g, counts in fleet.groups.items()},
    }


class FleetMachine(RuleBasedStateMachine):
    """Views of two partitions whose nodes appear, change, move and leave, with claims and exclusions in between."""

    @initialize(states=st.lists(states, min_size=2, max_size=4))
    def begin(self, states: list[dict[str, Any] | None]) -> None:
        self.fleet = Fleet()
        self.tables: list[Table | None] = [None, None]
        self.left_out: set[str] = set()
        self.overlays: dict[str, OutstandingClaims] = {}
        self.generation = 0
        self.epoch = 0
        self.remembered: tuple[int, dict[str, Any]] = (0, {})
        self.begin_epoch(0, states)

    def record(self, name: str, state: dict[str, Any] | None) -> NodeRecord:
        self.generation += 1
        return node(name, self.generation, state)

    def names(self) -> list[str]:
        return [record.name for table in self.tables if table is not None for record in table.records()]

    # -- views

    @rule(partition=st.integers(0, 1), states=st.lists(states, max_size=4))
    def begin_epoch(self, partition: int, states: list[dict[str, Any] | None]) -> None:
        """The store was lost, or readers follow another design."""
        partition %= len(self.tables)
        self.epoch += 1
        elsewhere = {r.name for n, t in enumerate(self.tables) if t is not None and n != partition for r in t.records()}
        names = [name for name in (f"n{number}" for number in range(len(states))) if name not in elsewhere]
        records = [self.record(name, state) for name, state in zip(names, states, strict=False)]
        self.tables[partition] = table_of(self.epoch, 1, records)

    @rule(partition=st.integers(0, 1))
    def lose(self, partition: int) -> None:
        """Nothing of a partition can be read."""
        if partition < len(self.tables):
            self.tables[partition] = None

    @rule()
    def repartition(self) -> None:
        """Move all nodes of two partitions to one, or the other way round, as after a switch to another layout."""
        records = [record for table in self.tables if table is not None for record in table.records()]
        self.epoch += 2
        if len(self.tables) == 2:
            self.tables = [table_of(self.epoch, 1, records)]
        else:
            self.tables = [table_of(self.epoch - 1, 1, records[1::2]), table_of(self.epoch, 1, records[::2])]

    @rule(partition=numbers, changed=st.dictionaries(numbers, states, max_size=3))
    def change(self, partition: int, changed: dict[int, dict[str, Any] | None]) -> None:
        table = self.tables[partition % len(self.tables)]
        if table is not None and table.size:
            updates = {s % table.size: self.record(table.at(s % table.size).name, x) for s, x in changed.items()}
            self.tables[partition % len(self.tables)] = advanced(table, table.offset + 1, updates)

    @rule(partition=numbers, state=states, many=st.sampled_from([1, 1, 1, FIRST_ROWS + 1]))
    def appear(self, partition: int, state: dict[str, Any] | None, many: int) -> None:
        """One node appears, or more nodes than the arrays have room for."""
        partition %= len(self.tables)
        table = self.tables[partition]
        if table is None or len(self.fleet) > 2 * FIRST_ROWS:
            return
        names = [f"e{table.epoch}-{table.size + number}" for number in range(many)]
        updates = {table.size + number: self.record(name, state) for number, name in enumerate(names)}
        self.tables[partition] = advanced(table, table.offset + 1, updates)

    @rule(picks=st.lists(numbers, max_size=3))
    def leave_out(self, picks: list[int]) -> None:
        """The view leaves out some nodes, which are stale or incomplete, and some that the fleet has never seen."""
        names = self.names()
        self.left_out = {names[pick % len(names)] for pick in picks if names} | {"n3", "nobody"}

    @rule()
    def look(self) -> None:
        view = view_of_tables(self.tables, self.left_out)
        self.fleet.advance(view)
        self.compare(view)

    # -- claims

    @rule(pick=numbers, outstanding=outstandings)
    def claim(self, pick: int, outstanding: OutstandingClaims | None) -> None:
        """The fleet shows an overlay at once."""
        self.look()
        if not len(self.fleet):
            return
        row = pick % len(self.fleet)
        self.fleet.overlay(row, outstanding)
        self.overlays.pop(self.fleet.names[row], None)
        if outstanding is not None:
            self.overlays[self.fleet.names[row]] = outstanding

    @rule(picks=st.lists(st.tuples(numbers, instances, amounts), max_size=3))
    def exclude(self, picks: list[tuple[int, str, dict[str, int]]]) -> None:
        """Instances are left out of the fleet and put back; afterwards the fleet is as before."""
        self.look()
        if not len(self.fleet):
            return
        exclusions = [Exclusion(pick % len(self.fleet), instance, amounts) for pick, instance, amounts in picks]
        before = contents(self.fleet)
        with self.fleet.excluding(exclusions):
            for row, instance, *_ in exclusions:
                assert row not in self.fleet.instances.rows_with(instance)
            free = {c: array.copy() for c, array in self.fleet.free.items()}
        assert contents(self.fleet) == before
        for c, array in free.items():
            more = np.zeros(len(array), np.int64)
            for row, _, amounts, _ in exclusions:
                more[row] += amounts.get(c, 0)
            assert (array == self.fleet.free[c] + more).all()

    @rule()
    def remember(self) -> None:
        """A ranking was computed; from now on the log must name every row that changes."""
        self.look()
        self.remembered = (self.fleet.changes, self.rows())

    # -- what is held

    def rows(self) -> dict[str, Any]:
        return {name: here for row in range(len(self.fleet)) for name, here in row_of(self.fleet, row).items()}

    def compare(self, view: View) -> None:
        fresh = Fleet()
        fresh.advance(view)
        for name, outstanding in self.overlays.items():
            if name in fresh.rows:
                fresh.overlay(fresh.rows[name], outstanding)
        changes, before = self.remembered
        changed = self.fleet.changed_since(changes)
        if changed is not None:
            now = self.rows()
            assert {name for name in now if now[name] != before.get(name)} <= {self.fleet.names[row] for row in changed}
        gone = set(self.fleet.names) - set(fresh.names)
        classes = fresh.amounts.keys()  # a class stays known after the last node with it has left
        assert not any(self.fleet.amounts[name].any() for name in self.fleet.amounts.keys() - classes)
        ours, theirs = contents(self.fleet, classes), contents(fresh, classes)
        if not gone & self.overlays.keys():  # claims outlive a node, and count again when it comes back
            assert ours == theirs
        else:
            assert {n: r for n, r in ours["rows"].items() if n not in gone} == theirs["rows"]
            assert not any(self.fleet.usable[self.fleet.rows[name]] for name in gone)

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            self.look()


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(settings(), stateful_step_count=15)


def test_claim_counts_for_a_resource_class_that_appears_later() -> None:
    """The claim is read before the first view with the class: its row must not look as if nothing were claimed."""
    cell = ChangingPartition(host("a"), host("b"))
    fleet = Fleet()
    fleet.advance(cell.view)
    fleet.overlay(0, OutstandingClaims({"CUSTOM_GPU": 3}))
    before = fleet.changes
    cell.change(host("b", 2, inventory={"CUSTOM_GPU": {"total": 4}}))
    fleet.advance(cell.view)
    assert fleet.free["CUSTOM_GPU"][fleet.all].tolist() == [-3, 4]
    assert set(fleet.changed_since(before) or ()) == {0, 1}


def test_invalid_hint_of_another_service_hides_no_other_marks() -> None:
    """Hints may come from any service. One invalid hint must not make the node's reservations look unmarked."""
    mark, order = {"reservation": "r1", "members": 2, "placed": True}, "0199c1f2a3b4-0123456789ab"
    allocations = {
        "ours": {"resources": {"VCPU": 1}, "group": "web", "hints": {**mark, "order": order}},
        "theirs": {"resources": {"VCPU": 1}, "group": "db", "hints": {"order": 7, "reservation": 5}},
    }
    fleet = fleet_of(host("a", instances=allocations))
    assert fleet.placement_marks.by_reservation == {"r1": {(0, "ours"): PlacementMark("r1", 2, True)}}
    assert [order_id_of(fleet.reports.hints(0, instance)) for instance in ("ours", "theirs")] == [order, ""]
    assert fleet.groups == {"web": {0: 1}, "db": {0: 1}}


def test_instance_that_two_nodes_report_counts_on_both_until_one_reports_its_end() -> None:
    """The instance takes room on both nodes, and the reconciler must see the duplicate."""
    cell = ChangingPartition(host("a", instances={"vm": "web"}), host("b"))
    fleet = Fleet()
    fleet.advance(cell.view)
    fleet.overlay(1, OutstandingClaims({"VCPU": 1}, {"vm": "web"}))
    assert (fleet.instances.rows_with("vm"), fleet.instances.duplicates()) == ([0, 1], {})
    cell.change(host("b", 2, used=1, instances={"vm": "web"}))
    fleet.advance(cell.view)
    fleet.overlay(1, None)
    assert (fleet.instances.rows_with("vm"), fleet.instances.duplicates()) == ([0, 1], {"vm": [0, 1]})
    assert fleet.groups == {"web": {0: 1, 1: 1}}
    cell.change(host("a", 2))
    fleet.advance(cell.view)
    assert (fleet.instances.rows_with("vm"), fleet.instances.duplicates(), fleet.groups) == ([1], {}, {"web": {1: 1}})


def test_fleet_keeps_all_values_when_its_arrays_grow() -> None:
    """All arrays are replaced by longer ones."""
    state: dict[str, Any] = {
        "zone": "az1",
        "traits": ["w1"],
        "aggregates": ["w2"],
        "used": 3,
        "instances": {"a": "web"},
    }
    cell = ChangingPartition(host("n0", **state), host("n1", **state))
    fleet = Fleet()
    fleet.advance(cell.view)
    fleet.overlay(0, OutstandingClaims({"VCPU": 2}, {"b": "db"}))
    before = row_of(fleet, 0) | row_of(fleet, 1)
    cell.change(*(host(f"n{number}") for number in range(2, 3 * FIRST_ROWS)))
    fleet.advance(cell.view)
    assert len(fleet) == 3 * FIRST_ROWS
    assert row_of(fleet, 0) | row_of(fleet, 1) == before
    assert row_of(fleet, 2 * FIRST_ROWS) == row_of(fleet_of(host(f"n{2 * FIRST_ROWS}")), 0)
    assert fleet.usable[fleet.all].all()


def test_change_log_tells_when_it_no_longer_has_the_changes() -> None:
    """The log is bounded. A ranking that needs older changes weighs all rows."""
    fleet = fleet_of(host("a"), host("b"))
    start = fleet.changes
    for number in range(5 * FIRST_ROWS):
        fleet.overlay(number % 2, OutstandingClaims({"VCPU": number + 1}))
    assert fleet.changed_since(start) is None
    assert fleet.changed_since(fleet.changes - 3) == [1, 0, 1]
    assert fleet.changed_since(fleet.changes) == []


def test_node_that_comes_back_gets_its_old_row_and_its_claims() -> None:
    """A claim on a node that restarts still counts when the node is back."""
    cell = ChangingPartition(host("a"), host("b"))
    fleet = Fleet()
    fleet.advance(cell.view)
    fleet.overlay(0, OutstandingClaims({"VCPU": 5}, {"vm": None}))
    cell.change(node("a", 2))
    fleet.advance(cell.view)
    assert not fleet.usable[0]
    cell.change(host("a", 3))
    fleet.advance(cell.view)
    assert (fleet.usable[0], int(fleet.free["VCPU"][0]), fleet.version[0]) == (True, 3, Version(1, 3))
    assert fleet.instances.rows_with("vm") == [0]


def test_node_is_unusable_while_views_leave_it_out() -> None:
    """The node is stale or incomplete: its numbers stay, but nothing may be placed there. A node may also be left out
    before it is first seen.
    """
    cell = ChangingPartition(host("a"))
    cell.left_out = frozenset({"a", "b"})
    fleet = Fleet()
    fleet.advance(cell.view)
    cell.change(host("b"))
    fleet.advance(cell.view)
    assert fleet.usable[fleet.all].tolist() == [False, False]
    cell.left_out = frozenset({"a"})
    fleet.advance(cell.view)
    assert fleet.usable[fleet.all].tolist() == [False, True]


@pytest.mark.parametrize("rest", [b"\x81", b"\xc1", b"\x81\xaballocations\x01", b"\x81\xa9inventory\x90"])
def test_a_node_whose_stored_state_is_damaged_is_not_used_until_it_has_another(rest: bytes) -> None:
    """Regression: one such node ended the scheduler of the whole cell."""
    partition = ChangingPartition(host("a", vcpu=8), host("b", vcpu=8))
    fleet = Fleet()
    fleet.advance(partition.view)
    good = host("a", vcpu=8)
    partition.change(msgspec.structs.replace(good, generation=2, wanted_generation=2, rest=rest))
    fleet.advance(partition.view)
    assert [bool(fleet.usable[row]) for row in range(2)] == [False, True]
    assert (fleet.reports.allocations(0), fleet.reports.hints_by_instance(0)) == ({}, {})
    assert not fleet.is_responsive(0)
    partition.change(msgspec.structs.replace(good, generation=3, wanted_generation=3))
    fleet.advance(partition.view)
    assert [bool(fleet.usable[row]) for row in range(2)] == [True, True]
