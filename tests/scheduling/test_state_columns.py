"""State columns: filters and weighers of other packages reach metrics and namespaces of nodes, also after changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.errors import PolicyError
from nodestate.scheduling import Flags, Fleet, Request, RowIndex, Scores
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.scheduling.fleet.state_columns import KEPT_COLUMNS_COUNT
from nodestate.scheduling.selection import Policies, Selector, Weigher
from nodestate.scheduling.selection.plugins import own
from tests.scheduling.fleets import ChangingPartition, asked, chosen, fleet_of, host, node

NAMES = "abcdef"


def load(state: Mapping[str, Any]) -> float:
    """A number that a service other than nodestate reports in its namespace."""
    return float(state.get("namespaces", {}).get("nova", {}).get("load", -1))


states = st.none() | st.fixed_dictionaries(
    {
        "metrics": st.dictionaries(st.sampled_from(["cpu", "heat"]), st.integers(0, 9) | st.floats(0, 9)),
        "namespaces": st.dictionaries(
            st.sampled_from(["nova", "other"]), st.fixed_dictionaries({"load": st.integers(0, 9)})
        ),
    }
)
changes = st.dictionaries(st.sampled_from(NAMES), states, max_size=3)


@given(st.dictionaries(st.sampled_from(NAMES), states, min_size=1), st.lists(st.tuples(changes, st.booleans())))
def test_columns_equal_the_state_of_each_node_whatever_changed(
    first: dict[str, Any], later: list[tuple[dict[str, Any], bool]]
) -> None:
    """Nodes come, change and leave, claims are made between, and a column is not asked for after every change."""
    states, generation = dict(first), 1
    cell = ChangingPartition(*(node(name, 1, state) for name, state in states.items()))
    fleet = Fleet()
    fleet.advance(cell.view)
    for changed, asks in [({}, True), *later, ({}, True)]:
        generation += 1
        states |= changed
        cell.change(*(node(name, generation, state) for name, state in changed.items()))
        fleet.advance(cell.view)
        fleet.overlay(0, OutstandingClaims({"VCPU": generation}))
        if not asks:
            continue
        expected = [states[name] for name in fleet.names]
        metrics = [float((state or {}).get("metrics", {}).get("cpu", np.nan)) for state in expected]
        np.testing.assert_equal(fleet.state_columns.metric("cpu")[fleet.all], metrics)
        loads = [load(state) if state is not None else np.nan for state in expected]
        np.testing.assert_equal(fleet.state_columns.computed(load)[fleet.all], loads)


def test_column_is_computed_again_only_for_nodes_that_changed() -> None:
    """10,000 states take half a second to decode."""
    seen: list[str] = []

    def zone(state: Mapping[str, Any]) -> float:
        seen.append(state["zone"])
        return 1.0

    cell = ChangingPartition(*(host(name, zone=name) for name in NAMES))
    fleet = Fleet()
    fleet.advance(cell.view)
    fleet.state_columns.computed(zone)
    assert sorted(seen) == list(NAMES)
    seen.clear()
    fleet.state_columns.computed(zone)
    fleet.overlay(0, OutstandingClaims({"VCPU": 1}))
    fleet.state_columns.computed(zone)
    assert seen == []
    cell.change(host("b", 2, zone="new"))
    fleet.advance(cell.view)
    fleet.state_columns.computed(zone)
    assert seen == ["new"]


def test_functions_that_are_made_anew_for_each_decision_do_not_fill_the_memory() -> None:
    """A filter may pass a ``lambda`` although the page advises against it."""
    fleet = fleet_of(host("a"))
    for number in range(3 * KEPT_COLUMNS_COUNT):
        assert fleet.state_columns.computed(lambda _state, number=number: number)[0] == number
    assert len(fleet.state_columns._columns) == KEPT_COLUMNS_COUNT


def cool(fleet: Fleet, rows: RowIndex, _request: Request) -> Flags | bool:
    """The node is not hot."""
    return ~(fleet.state_columns.metric("heat")[rows] > 80)


def idle(fleet: Fleet, rows: RowIndex, _request: Request) -> Scores | float:
    """The load that Nova reports is low."""
    return np.nan_to_num(1 - fleet.state_columns.computed(load)[rows] / 10, nan=0.0)


def test_filter_by_a_metric_and_weigher_by_a_namespace_decide_on_the_last_view() -> None:
    """A node that changes between two decisions is filtered and weighed again."""

    def loaded(name: str, generation: int, heat: int, number: int) -> Any:
        return host(name, generation, metrics={"heat": heat}, namespaces={"nova": {"load": number}})

    cell = ChangingPartition(*(loaded(name, 1, 50, 5) for name in "abcdefghijklmnopqrstuvwxyz"))
    fleet = Fleet()
    fleet.advance(cell.view)
    policies = own()
    policies.filters["cool"] = cool
    policies.weighers["idle"] = Weigher(idle, 5.0)
    selector = Selector(fleet, policies, 1)
    chosen(selector, asked())
    cell.change(loaded("k", 2, 50, 1))
    fleet.advance(cell.view)
    assert chosen(selector, asked()) == ["k"]
    cell.change(loaded("k", 3, 90, 1), loaded("m", 2, 50, 2))
    fleet.advance(cell.view)
    assert chosen(selector, asked()) == ["m"]


def test_function_that_fails_is_named_by_its_filter() -> None:
    """It reads what other services report, which may have any form."""

    def fails(fleet: Fleet, rows: RowIndex, _request: Request) -> Flags | bool:
        return fleet.state_columns.computed(lambda state: state["namespaces"]["nova"]["load"])[rows] > 1

    selector = Selector(fleet_of(host("a")), Policies({"fails": fails}, {}), 1)
    with pytest.raises(PolicyError, match=r"filter 'fails' .* failed: KeyError"):
        chosen(selector, asked())
