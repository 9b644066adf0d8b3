"""Weighers: each by itself, from 0 to 1, on all rows and on some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.scheduling.fleet import Fleet, OutstandingClaims
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.weighers import WEIGHERS
from tests.scheduling.fleets import asked, fleet_of, host


def weights(name: str, fleet: Fleet, request: Request) -> list[float]:
    """The weight of each row. The weigher must agree on all rows at once and on each row alone."""
    weigh = WEIGHERS[name].weigh
    whole = np.zeros(len(fleet)) + weigh(fleet, fleet.all, request)
    alone = [float(np.sum(weigh(fleet, np.array([row]), request))) for row in range(len(fleet))]
    assert whole.tolist() == alone
    return [round(weight, 4) for weight in alone]


def inventory(**totals: int) -> dict[str, Any]:
    return {"inventory": {name: {"total": total} for name, total in totals.items()}}


@pytest.mark.parametrize("name", ["cpu", "ram", "disk"])
def test_weight_is_the_share_that_would_be_left_free_and_not_the_amount(name: str) -> None:
    """Half of a small node is as good as half of a large one. The requested and the claimed amounts are taken off
    first.
    """
    resource = {"cpu": "VCPU", "ram": "MEMORY_MB", "disk": "DISK_GB"}[name]
    fleet = fleet_of(
        host("a", **inventory(**{resource: 8}), usage={resource: 3}),
        host("b", **inventory(**{resource: 80}), usage={resource: 39}),
        host("c", **inventory(**{resource: 8}), usage={resource: 9}),
        host("d", **inventory(CUSTOM_X=1), usage={}),
    )
    fleet.overlay(1, OutstandingClaims({resource: 20}))
    assert weights(name, fleet, asked(resources={resource: 1})) == [0.5, 0.25, 0.0, 0.0]
    assert weights(name, fleet, asked(resources={"CUSTOM_X": 1})) == [0.625, 0.2625, 0.0, 0.0]


def test_weight_of_a_class_that_no_node_has_is_0() -> None:
    """In some cells agents report no disk."""
    fleet = fleet_of(host("a"), host("b"))
    assert weights("disk", fleet, asked()) == [0.0, 0.0]


def test_pack_is_high_if_little_would_be_left() -> None:
    """Best fit, over the requested classes."""
    fleet = fleet_of(
        host("a", **inventory(VCPU=4, MEMORY_MB=8), usage={"VCPU": 2, "MEMORY_MB": 4}),
        host("b", **inventory(VCPU=4, MEMORY_MB=8), usage={}),
    )
    assert weights("pack", fleet, asked(resources={"VCPU": 2, "MEMORY_MB": 2})) == [0.875, 0.375]


def test_balance_is_high_if_all_classes_would_be_used_alike() -> None:
    """No node should be left with memory that no processor can use."""
    fleet = fleet_of(
        host("a", **inventory(VCPU=4, MEMORY_MB=8), usage={"VCPU": 2}),
        host("b", **inventory(VCPU=4, MEMORY_MB=8), usage={"VCPU": 1, "MEMORY_MB": 2}),
    )
    request = asked(resources={"VCPU": 1, "MEMORY_MB": 2})
    assert weights("balance", fleet, request) == [0.5, 1.0]
    assert weights("balance", fleet, asked(1)) == [0.0, 0.0]


def test_spare_is_low_if_rare_resources_would_stay_idle() -> None:
    """An instance without a GPU leaves the node with a free GPU to instances that need one."""
    fleet = fleet_of(
        host("a", **inventory(VCPU=4, CUSTOM_GPU=2, CUSTOM_FPGA=1), usage={}),
        host("b", **inventory(VCPU=4, CUSTOM_GPU=2), usage={"CUSTOM_GPU": 2}),
        host("c"),
    )
    assert weights("spare", fleet, asked()) == [0.0, 1.0, 1.0]
    assert weights("spare", fleet, asked(resources={"VCPU": 1, "CUSTOM_GPU": 1})) == [0.0, 1.0, 1.0]


def test_soft_policies_count_the_members_on_a_node() -> None:
    """More members are better, or fewer. Claimed members count."""
    fleet = fleet_of(host("a", instances={"1": "web", "2": "web"}), host("b"), host("c", instances={"3": "db"}))
    fleet.overlay(2, OutstandingClaims({"VCPU": 1}, {"4": "web"}))
    near = asked(group={"name": "web", "policy": "soft-affinity"})
    apart = asked(group={"name": "web", "policy": "soft-anti-affinity"})
    assert weights("soft_affinity", fleet, near) == [0.6667, 0.0, 0.5]
    assert weights("soft_anti_affinity", fleet, apart) == [0.3333, 1.0, 0.5]
    assert weights("soft_affinity", fleet, apart) == weights("soft_anti_affinity", fleet, near) == [0.0, 0.0, 0.0]


def test_spread_counts_the_members_of_a_zone_or_of_an_aggregate() -> None:
    """Zones and racks fail as a whole. A node in two racks is as crowded as both together."""
    fleet = fleet_of(
        host("a", zone="az1", aggregates=["r1"], instances={"1": "web"}),
        host("b", zone="az1", aggregates=["r2"]),
        host("c", zone="az2", aggregates=["r1", "r2"], instances={"2": "web", "3": "web"}),
        host("d", zone="az3"),
    )
    group = {"name": "web", "policy": "soft-anti-affinity"}
    assert weights("spread", fleet, asked(group=group, spread_by="zone")) == [0.5, 0.5, 0.3333, 1.0]
    assert weights("spread", fleet, asked(group=group, spread_by="aggregate")) == [0.25, 0.3333, 0.1667, 1.0]
    empty = {"name": "new", "policy": "soft-anti-affinity"}
    assert weights("spread", fleet, asked(group=empty, spread_by="zone")) == [1.0, 1.0, 1.0, 1.0]
    assert weights("spread", fleet, asked(group=empty, spread_by="aggregate")) == [1.0, 1.0, 1.0, 1.0]
    assert weights("spread", fleet, asked(group=group)) == [0.0, 0.0, 0.0, 0.0]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=4),
    st.integers(1, 9),
    st.integers(-9, 9),
)
def test_all_weights_are_from_0_to_1(nodes: list[tuple[int, int, int, int]], vcpu: int, claimed: int) -> None:
    """This holds for empty, full and overcommitted nodes and any request: otherwise multipliers would mean nothing."""
    fleet = fleet_of(
        *(
            host(
                f"n{n}",
                **inventory(VCPU=v, CUSTOM_GPU=g),
                usage={"VCPU": used_v, "CUSTOM_GPU": used_g},
                zone=f"z{n % 2}",
            )
            for n, (v, g, used_v, used_g) in enumerate(nodes)
        )
    )
    for row in range(len(fleet)):
        fleet.overlay(row, OutstandingClaims({"VCPU": abs(claimed)}, {f"i{row}": "web"}))
    for policy in ("soft-affinity", "soft-anti-affinity"):
        request = asked(
            resources={"VCPU": vcpu, "CUSTOM_GPU": 1}, group={"name": "web", "policy": policy}, spread_by="zone"
        )
        for name in WEIGHERS:
            assert all(0.0 <= weight <= 1.0 for weight in weights(name, fleet, request)), name
