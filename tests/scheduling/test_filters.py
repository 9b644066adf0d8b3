"""Filters: each by itself, on all rows and on some, also for words that no node has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nodestate.model import NodeRecord
from nodestate.scheduling.fleet import Exclusion, Fleet, OutstandingClaims
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.filters import FILTERS, active_filters
from tests.scheduling.fleets import ChangingPartition, asked, fleet_of, host

AVX, SSE = "HW_CPU_X86_AVX2", "HW_CPU_X86_SSE42"
WEB = {"name": "web", "policy": "soft-anti-affinity"}
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
        ("aggregates_all", 1, {}, "abcd"),
        ("aggregates_all", 1, {"aggregates_all": ["r1", "r2"]}, "b"),
        ("aggregates_all", 1, {"aggregates_all": ["r1", "r3"]}, ""),
        ("aggregates_none", 1, {}, "abcd"),
        ("aggregates_none", 1, {"aggregates_none": ["r1", "r3"]}, "cd"),
        ("aggregates_none", 1, {"aggregates_none": ["r3"]}, "abcd"),
        ("taints", 1, {}, "abcd"),
        ("units", 9, {}, "abcd"),
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


def test_filter_that_is_not_called_for_a_request_passes_every_node(fleet: Fleet) -> None:
    request = asked()
    active = dict(active_filters(request, FILTERS))
    skipped = [name for name in FILTERS if name not in active]
    assert list(active) == ["status", "taints", "units", "resources"]
    assert all(FILTERS[name](fleet, fleet.all, request) is True for name in skipped)


def test_filter_of_another_package_is_called_whatever_its_name_is() -> None:
    def zone(_fleet: Fleet, _rows: object, _request: Request) -> bool:
        return False

    assert ("zone", zone) in active_filters(asked(), {**FILTERS, "zone": zone})


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
    for by in ("zone", "aggregate"):
        request = asked(
            required_traits=[AVX],
            zone="az1",
            same_host=["vm"],
            ignore_nodes=["a"],
            force_nodes=["b"],
            aggregates_all=["r1"],
            aggregates_none=["r2"],
            tolerations=["gpu"],
            group=WEB,
            spread={"by": by},
        )
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


# -- taints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerations", "expected"),
    [
        ([], "c"),
        (["gpu"], "ac"),
        (["gpu", "slow"], "abc"),
        (["slow"], "c"),
        (["unknown"], "c"),
        (["unknown", "gpu"], "ac"),
    ],
)
def test_tainted_node_repels_requests_that_do_not_tolerate_all_of_its_taints(
    tolerations: list[str], expected: str
) -> None:
    """A node without taints takes all requests."""
    fleet = fleet_of(host("a", taints=["gpu"]), host("b", taints=["gpu", "slow"]), host("c"))
    assert passing("taints", fleet, asked(tolerations=tolerations)) == expected


def test_taint_counts_from_the_view_that_shows_it_to_the_one_that_does_not() -> None:
    """Operators set and remove taints while the cell runs."""
    cell = ChangingPartition(host("a"), host("b", taints=["gpu"]))
    fleet = Fleet()
    fleet.advance(cell.view)
    cell.change(host("a", 2, taints=["slow"]), host("b", 2))
    fleet.advance(cell.view)
    assert passing("taints", fleet, asked()) == "b"
    assert passing("taints", fleet, asked(tolerations=["slow"])) == "ab"


# -- units -----------------------------------------------------------------------------------------


def host_with_units(name: str, generation: int = 1, **units: int) -> NodeRecord:
    """A node with 64 processors, which it gives in these units."""
    return host(name, generation, inventory={"VCPU": {"total": 4, "allocation_ratio": 16.0, **units}})


@pytest.mark.parametrize(
    ("vcpu", "expected"), [(1, "ad"), (2, "abd"), (3, "acd"), (4, "abcd"), (5, "cd"), (6, "bcd"), (40, "bd")]
)
def test_node_takes_an_instance_only_in_its_units(vcpu: int, expected: str) -> None:
    """Regression: 40 processors were placed on 4 processors times 16. Here, a gives at most 4 at a time, b even
    amounts, c 3 to 8, and d any amount.
    """
    fleet = fleet_of(
        host_with_units("a", max_unit=4),
        host_with_units("b", step_size=2),
        host_with_units("c", min_unit=3, max_unit=8),
        host_with_units("d"),
    )
    assert passing("units", fleet, asked(vcpu)) == expected


def test_units_of_a_class_follow_the_node_and_no_other_class_or_node() -> None:
    """Also if nodes come after the arrays of units were made, and lose the class."""
    cell = ChangingPartition(host_with_units("a", max_unit=4), host("b"))
    fleet = Fleet()
    fleet.advance(cell.view)
    cell.change(*(host(f"n{number}") for number in range(300)))
    cell.change(host_with_units("a", 2, max_unit=8), host_with_units("b", 2, step_size=3))
    fleet.advance(cell.view)
    assert [bool(np.all(fleet.units.allow({"VCPU": 8}, np.array([row])))) for row in (0, 1, 2)] == [True, False, True]
    assert np.all(fleet.units.allow({"DISK_GB": 8}, fleet.all))
    cell.change(host("a", 3), host("b", 3, inventory={"DISK_GB": {"total": 9, "min_unit": 9}}))
    fleet.advance(cell.view)
    assert np.all(fleet.units.allow({"VCPU": 1_000}, fleet.all))
    assert np.flatnonzero(np.logical_not(fleet.units.allow({"DISK_GB": 8}, fleet.all))).tolist() == [1]


def test_inventory_of_placement_is_taken_as_it_is() -> None:
    """The answer of OpenStack's Placement for one resource class."""
    inventory = {
        "VCPU": {
            "total": 4,
            "reserved": 0,
            "min_unit": 1,
            "max_unit": 4,
            "step_size": 1,
            "allocation_ratio": 16.0,
        }
    }
    fleet = fleet_of(host("a", inventory=inventory))
    assert fleet.amounts["VCPU"][0][0] == 64
    assert (passing("units", fleet, asked(4)), passing("units", fleet, asked(5))) == ("a", "")


# -- spread ----------------------------------------------------------------------------------------


def spread_cell(**counts: int) -> Fleet:
    """A node in each of the zones a, b and c, each with this number of members of the group, and d without a zone."""
    return fleet_of(
        *(
            host(name, zone=zone, aggregates=[f"r-{name}"] if zone else [], instances=members(name, counts))
            for name, zone in (("a", "a"), ("b", "b"), ("c", "c"), ("d", ""))
        )
    )


def members(name: str, counts: Mapping[str, int]) -> dict[str, str]:
    return {f"{name}{number}": "web" for number in range(counts.get(name, 0))}


@pytest.mark.parametrize("by", ["zone", "aggregate"])
@pytest.mark.parametrize(
    ("counts", "max_skew", "expected"),
    [
        ({}, 1, "abc"),
        ({"a": 1}, 1, "bc"),
        ({"a": 1, "b": 1}, 1, "c"),
        ({"a": 1, "b": 1, "c": 1}, 1, "abc"),
        ({"a": 1}, 2, "abc"),
        ({"a": 2}, 2, "bc"),
        ({"a": 3, "b": 1, "c": 1}, 2, "bc"),
        ({"d": 5}, 1, "abc"),
    ],
)
def test_spread_passes_only_domains_that_stay_within_the_skew(
    by: str, counts: dict[str, int], max_skew: int, expected: str
) -> None:
    """A node without a zone, or without an aggregate, is in no domain, so it can't take a member."""
    request = asked(group=WEB, spread={"by": by, "max_skew": max_skew})
    assert passing("spread", spread_cell(**counts), request) == expected


def test_spread_counts_claimed_members_and_leaves_out_excluded_ones() -> None:
    """Several members are placed on one view, and a migrating member counts nowhere."""
    fleet = spread_cell(a=1, b=1)
    request = asked(group=WEB, spread={"by": "zone"})
    fleet.overlay(2, OutstandingClaims({"VCPU": 1}, {"vm": "web"}))
    assert passing("spread", fleet, request) == "abc"
    with fleet.excluding([Exclusion(0, "a0", {"VCPU": 1})]):
        assert passing("spread", fleet, request) == "a"


def test_domain_without_a_node_that_the_request_allows_does_not_count() -> None:
    """Otherwise no zone could take a second member because of a zone that can't take the first one. A full zone counts:
    room may come back, and the request asks for an even spread.
    """
    more: dict[str, Any] = {"group": WEB, "spread": {"by": "zone"}}
    for refused, fields in (
        ({"zone": "c", "taints": ["gpu"]}, {}),
        ({"zone": "c", "traits": [SSE]}, {"forbidden_traits": [SSE]}),
        ({"zone": "c", "status": "down"}, {}),
        ({"zone": "c", "aggregates": ["old"]}, {"aggregates_none": ["old"]}),
    ):
        one, two = {"a": "web"}, {"b": "web"}
        fleet = fleet_of(host("a", zone="a", instances=one), host("b", zone="b", instances=two), host("c", **refused))
        assert passing("spread", fleet, asked(**more, **fields)) == "abc", refused
    fleet = fleet_of(host("a", zone="a", instances={"a": "web"}), host("c", zone="c", vcpu=1, used=1))
    assert passing("spread", fleet, asked(**more)) == "c"


def test_node_that_waits_for_a_newer_view_still_counts_as_a_domain() -> None:
    """Otherwise a claim by another scheduler would let a second member into a zone for a moment."""
    fleet = spread_cell(a=1, b=1)
    fleet.overlay(2, OutstandingClaims(blocked=True))
    assert passing("spread", fleet, asked(group=WEB, spread={"by": "zone"})) == "c"


def test_spread_over_aggregates_uses_only_the_aggregates_that_the_request_names() -> None:
    """A node is in a rack, and in aggregates that are no racks at all."""
    fleet = fleet_of(
        host("a", aggregates=["r1", "ssd"], instances={"a": "web"}),
        host("b", aggregates=["r2", "ssd"]),
        host("c", aggregates=["old"]),
    )
    by_rack = asked(group=WEB, aggregates=["r1", "r2"], spread={"by": "aggregate"})
    assert passing("spread", fleet, by_rack) == "b"
    assert passing("spread", fleet, asked(group=WEB, spread={"by": "aggregate"})) == "c"
