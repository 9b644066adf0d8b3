"""Filters: each by itself, on all rows and on some, also for words that no node has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nodestate.scheduling.fleet import Fleet, OutstandingClaims
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.filters import FILTERS
from tests.scheduling.fleets import ChangingPartition, asked, fleet_of, host

AVX, SSE = "HW_CPU_X86_AVX2", "HW_CPU_X86_SSE42"
ROWS = ["a", "b", "c", "d"]


def passing(name: str, fleet: Fleet, request: Request) -> str:
    """The nodes that pass, joined to one word. The filter must agree on all rows at once, on each row alone, and on row
    numbers.
    """
    whole = np.zeros(len(fleet), np.bool_) | FILTERS[name](fleet, fleet.all, request)
    numbered = np.zeros(len(fleet), np.bool_) | FILTERS[name](fleet, np.arange(len(fleet)), request)
    alone = [bool(np.all(FILTERS[name](fleet, np.array([row]), request))) for row in range(len(fleet))]
    assert whole.tolist() == numbered.tolist() == alone
    return "".join(node for row, node in enumerate(fleet.names) if whole[row])


@pytest.fixture
def fleet() -> Fleet:
    """Four nodes: a is the smallest and has AVX; b has both traits; c is in another zone; d is draining."""
    return fleet_of(
        host("a", vcpu=2, traits=[AVX], zone="az1", aggregates=["r1"], instances={"vm1": "web"}),
        host(
            "b", vcpu=4, traits=[SSE, AVX], zone="az1", aggregates=["r1", "r2"], instances={"vm2": "web", "vm3": "web"}
        ),
        host("c", vcpu=8, used=2, zone="az2", aggregates=["r2"], instances={"vm4": "db"}),
        host("d", vcpu=8, status="draining"),
    )


@pytest.mark.parametrize(
    ("name", "vcpu", "more", "expected"),
    [
        ("status", 1, {}, "abc"),
        ("resources", 2, {}, "abcd"),
        ("resources", 3, {}, "bcd"),
        ("resources", 6, {}, "cd"),
        ("resources", 7, {}, "d"),
        ("resources", 9, {}, ""),
        ("resources", 1, {"resources": {"VCPU": 1, "CUSTOM_GPU": 1}}, ""),
        ("required_traits", 1, {}, "abcd"),
        ("required_traits", 1, {"required_traits": [AVX]}, "ab"),
        ("required_traits", 1, {"required_traits": [AVX, SSE]}, "b"),
        ("required_traits", 1, {"required_traits": [AVX, "CUSTOM_NOBODY"]}, ""),
        ("any_traits", 1, {}, "abcd"),
        ("any_traits", 1, {"any_traits": [AVX, "CUSTOM_NOBODY"]}, "ab"),
        ("any_traits", 1, {"any_traits": ["CUSTOM_NOBODY"]}, ""),
        ("forbidden_traits", 1, {}, "abcd"),
        ("forbidden_traits", 1, {"forbidden_traits": [SSE]}, "acd"),
        ("forbidden_traits", 1, {"forbidden_traits": ["CUSTOM_NOBODY"]}, "abcd"),
        ("zone", 1, {}, "abcd"),
        ("zone", 1, {"zone": "az1"}, "ab"),
        ("zone", 1, {"zone": "az3"}, ""),
        ("aggregates", 1, {}, "abcd"),
        ("aggregates", 1, {"aggregates": ["r2", "r3"]}, "bc"),
        ("aggregates", 1, {"aggregates": ["r3"]}, ""),
        ("force_nodes", 1, {}, "abcd"),
        ("force_nodes", 1, {"force_nodes": ["c", "a", "zz"]}, "ac"),
        ("force_nodes", 1, {"force_nodes": ["zz"]}, ""),
        ("ignore_nodes", 1, {}, "abcd"),
        ("ignore_nodes", 1, {"ignore_nodes": ["a", "zz"]}, "bcd"),
        ("ignore_nodes", 1, {"ignore_nodes": ["zz"]}, "abcd"),
        ("same_host", 1, {}, "abcd"),
        ("same_host", 1, {"same_host": ["vm1", "vm4"]}, "ac"),
        ("same_host", 1, {"same_host": ["vm9"]}, ""),
        ("different_host", 1, {}, "abcd"),
        ("different_host", 1, {"different_host": ["vm1", "vm9"]}, "bcd"),
        ("different_host", 1, {"different_host": ["vm9"]}, "abcd"),
        ("group", 1, {}, "abcd"),
        ("group", 1, {"group": {"name": "web", "policy": "affinity"}}, "ab"),
        ("group", 1, {"group": {"name": "new", "policy": "affinity"}}, "abcd"),
        ("group", 1, {"group": {"name": "web", "policy": "anti-affinity"}}, "cd"),
        ("group", 1, {"group": {"name": "web", "policy": "anti-affinity", "max_per_node": 2}}, "acd"),
        ("group", 1, {"group": {"name": "web", "policy": "anti-affinity", "max_per_node": 3}}, "abcd"),
        ("group", 1, {"group": {"name": "web", "policy": "soft-affinity"}}, "abcd"),
        ("group", 1, {"group": {"name": "web", "policy": "soft-anti-affinity"}}, "abcd"),
    ],
)
def test_filter_passes_exactly_the_expected_nodes(
    fleet: Fleet, name: str, vcpu: int, more: dict[str, Any], expected: str
) -> None:
    """The result is the same for all rows and for few: a ranking asks again only for rows that changed."""
    assert passing(name, fleet, asked(vcpu, **{"resources": {"VCPU": vcpu}, **more})) == expected


def test_filters_see_claims_as_if_they_were_allocations(fleet: Fleet) -> None:
    """The claimed room is gone, and the claimed instances and group members are on the node."""
    fleet.overlay(1, OutstandingClaims({"VCPU": 3}, {"vm5": "db"}))
    assert passing("resources", fleet, asked(2)) == "acd"
    assert passing("group", fleet, asked(group={"name": "db", "policy": "anti-affinity"})) == "ad"
    assert passing("same_host", fleet, asked(same_host=["vm5"])) == "b"
    fleet.overlay(2, OutstandingClaims(blocked=True))
    assert passing("status", fleet, asked()) == "ab"


def test_overcommitted_node_has_no_room() -> None:
    """More is used than there is. As an unsigned number the difference would be a large amount of room."""
    assert passing("resources", fleet_of(host("a", vcpu=2, used=5), host("b")), asked(1)) == "b"


def test_no_filter_fails_on_a_cell_without_nodes() -> None:
    """This is the first request of a new cell."""
    request = asked(required_traits=[AVX], zone="az1", same_host=["vm"], ignore_nodes=["a"], force_nodes=["b"])
    for name in FILTERS:
        assert passing(name, fleet_of(), request) == ""


def test_traits_zones_and_aggregates_that_a_node_lost_no_longer_count() -> None:
    """A node that no longer has AVX must not pass for one that has it."""
    cell = ChangingPartition(
        host("a", traits=[AVX], zone="az1", aggregates=["r1"]), host("b", traits=[AVX], zone="az1")
    )
    fleet = Fleet()
    fleet.advance(cell.view)
    cell.change(host("a", 2, traits=[SSE], zone="az2"))
    fleet.advance(cell.view)
    assert passing("required_traits", fleet, asked(required_traits=[AVX])) == "b"
    assert passing("zone", fleet, asked(zone="az1")) == "b"
    assert passing("aggregates", fleet, asked(aggregates=["r1"])) == ""
