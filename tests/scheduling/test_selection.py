"""Selection: instances of one request are placed as if the earlier ones were on their nodes, and a failure has its
reasons.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.errors import PolicyError
from nodestate.scheduling.fleet import Fleet, OutstandingClaims
from nodestate.scheduling.selection import Lack, Remaining, Selector
from nodestate.scheduling.selection.filters import FILTERS
from nodestate.scheduling.selection.plugins import Policies, own
from nodestate.scheduling.selection.ranking import TIE_WIDTH
from nodestate.scheduling.selection.selector import KEPT_RANKINGS_COUNT
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher
from tests.scheduling.fleets import ChangingPartition, asked, chosen, fleet_of, host, selector_of

ANTI = {"name": "web", "policy": "anti-affinity"}
NEAR = {"name": "web", "policy": "affinity"}


def left(remaining: tuple[Remaining, ...]) -> dict[str, int]:
    return {step.filter: step.nodes for step in remaining}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 12), st.integers(0, 9))
def test_instances_of_one_request_fill_all_room_and_overfill_no_node(
    sizes: list[int], vcpu: int, count: int, seed: int
) -> None:
    """Each instance counts for the next. An instance fails only if there is no room, and the fleet is afterwards as
    before.
    """
    selector = selector_of(*(host(f"n{n}", vcpu=size) for n, size in enumerate(sizes)), seed=seed)
    before = selector.fleet.free["VCPU"].copy()
    nodes = chosen(selector, asked(vcpu, count=count))
    taken = Counter(nodes)
    room = {f"n{n}": size // vcpu for n, size in enumerate(sizes)}
    assert all(taken[name] <= room[name] for name in room)
    assert len(nodes) - taken[None] == min(count, sum(room.values()))
    assert (selector.fleet.free["VCPU"] == before).all()
    assert selector.fleet.groups == {}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_anti_affinity_limit_holds_on_every_node(limit: int) -> None:
    """Members that are on the node already, and claimed ones, count."""
    selector = selector_of(host("a", instances={"1": "web"}), host("b"), host("c"))
    selector.fleet.overlay(1, OutstandingClaims({"VCPU": 1}, {"2": "web"}))
    group = {**ANTI, "max_per_node": limit}
    nodes = chosen(selector, asked(count=3 * limit - 2, group=group))
    assert Counter(nodes) == +Counter({"a": limit - 1, "b": limit - 1, "c": limit})
    if limit > 1:
        assert chosen(selector, asked(count=3 * limit - 1, group=group)) == [None] * (3 * limit - 1)


def test_affinity_group_stays_on_its_first_node() -> None:
    """If all members do not fit there together, no member is placed."""
    selector = selector_of(host("a", vcpu=3), host("b", vcpu=3), host("c", vcpu=3))
    nodes = chosen(selector, asked(count=3, group=NEAR))
    assert nodes in (["a"] * 3, ["b"] * 3, ["c"] * 3)
    assert chosen(selector, asked(count=4, group=NEAR)) == [None] * 4
    where = selector_of(host("a", vcpu=30), host("b", instances={"1": "web"}), host("c", vcpu=30))
    assert chosen(where, asked(count=3, group=NEAR)) == ["b", "b", "b"]


def test_soft_policies_are_preferences() -> None:
    """Members are together while there is room, or apart while there are nodes."""
    near = chosen(
        selector_of(host("a", vcpu=3), host("b", vcpu=3)), asked(count=6, group={**NEAR, "policy": "soft-affinity"})
    )
    assert near[0] == near[1] == near[2] != near[3] == near[4] == near[5]
    apart = chosen(
        selector_of(*(host(name) for name in "abc")), asked(count=6, group={**ANTI, "policy": "soft-anti-affinity"})
    )
    assert sorted(apart[:3]) == sorted(apart[3:]) == ["a", "b", "c"]  # type: ignore[type-var]


@pytest.mark.parametrize("by", ["zone", "aggregate"])
def test_group_is_spread_over_zones_or_aggregates(by: str) -> None:
    """One zone has more, larger and emptier nodes, which would get all members without spreading."""
    small = [host(f"s{n}", vcpu=8, used=4, zone="az2", aggregates=["r2"]) for n in range(2)]
    large = [host(f"l{n}", vcpu=80, zone="az1", aggregates=["r1"]) for n in range(4)]
    group = {"name": "web", "policy": "soft-anti-affinity"}
    nodes = chosen(selector_of(*small, *large), asked(count=4, group=group, spread_by=by))
    assert Counter(str(name)[0] for name in nodes) == {"s": 2, "l": 2}
    assert len(set(nodes)) == 4


def test_alternates_are_the_next_best_nodes_that_pass_every_filter() -> None:
    """With alternates, a failed build need not start over."""
    selector = selector_of(host("a", used=1), host("b", used=7), host("c", used=8), host("d", used=4))
    [choice] = selector.choices(asked(1, alternates=5))
    assert (choice.node, choice.alternates) == ("a", ("d", "b"))
    [choice] = selector.choices(asked(1, alternates=1))
    assert (choice.node, choice.alternates) == ("a", ("d",))


def test_choice_without_a_node_lists_what_each_filter_left() -> None:
    """Instead of an unexplained "no valid host": every filter in its order, with the number of nodes that it left."""
    selector = selector_of(
        host("a", zone="az1"),
        host("b", zone="az1", status="down"),
        host("c", vcpu=1, zone="az1"),
        host("d", zone="az2", traits=["CUSTOM_A"]),
    )
    [choice] = selector.choices(asked(2, zone="az1", required_traits=["CUSTOM_A"], instances=["vm"]))
    assert (choice.instance, choice.node, choice.alternates) == ("vm", None, ())
    expected = {
        "all": 4,
        "force_nodes": 4,
        "ignore_nodes": 4,
        "status": 3,
        "taints": 3,
        "units": 3,
        "resources": 2,
        "required_traits": 1,
        "any_traits": 1,
        "forbidden_traits": 1,
        "zone": 0,
    }
    after_zone = ["aggregates", "aggregates_all", "aggregates_none", "same_host", "different_host", "group", "spread"]
    assert left(choice.remaining) == {**expected, **dict.fromkeys(after_zone, 0)}
    assert [step.filter for step in choice.remaining] == ["all", *FILTERS]


@pytest.mark.parametrize(
    ("more", "unknown"),
    [
        ({"force_nodes": ["x", "y"]}, "no node x or y is known; 'nodestate view' lists them"),
        (
            {"force_nodes": [f"x{n}" for n in range(9)]},
            "no node x0 or x1 or x2 or x3 or … is known; 'nodestate view' lists them",
        ),
        ({"force_nodes": ["x", "a"]}, ""),
        ({"zone": "az9"}, "no node is in zone az9"),
        ({"zone": "az0"}, "no node is in zone az0"),
        ({"zone": "az1"}, ""),
        ({"same_host": ["vm8", "vm9"]}, "no node has vm8 or vm9"),
        ({"same_host": ["vm1", "vm9"]}, ""),
    ],
)
def test_name_that_does_not_exist_is_reported(more: dict[str, Any], unknown: str) -> None:
    """Most such names are misspelt: then no filter's name helps, whatever else refuses the instance. az0 was a zone
    once.
    """
    cell = ChangingPartition(host("a", zone="az0", instances={"vm1": None}), host("b", zone="az1"))
    selector = Selector(Fleet(), own(), 1)
    selector.fleet.advance(cell.view)
    cell.change(host("a", 2, zone="az1", instances={"vm1": None}))
    selector.fleet.advance(cell.view)
    [choice] = selector.choices(asked(9, **more))
    assert choice.unknown == unknown


def test_taints_and_units_of_all_nodes_are_named_if_no_node_takes_the_request() -> None:
    """The filter's name alone does not say which words to tolerate, or which amount to ask for."""
    units = {"VCPU": {"total": 64, "max_unit": 4}}
    tainted = selector_of(host("a", taints=["gpu"]), host("b", taints=["gpu", "slow"]))
    [choice] = tainted.choices(asked(1, tolerations=["slow"]))
    assert choice.unknown == "each node has a taint that the request does not tolerate: gpu"
    [choice] = selector_of(host("a", inventory=units)).choices(asked(40))
    reason = "no node gives 40 of VCPU to one instance; a has min_unit 1, max_unit 4 and step_size 1"
    assert choice.unknown == reason
    [choice] = selector_of(host("a", inventory=units), host("b")).choices(asked(40))
    assert choice.unknown == ""
    assert choice.remaining[-1].nodes == 0


def test_choice_without_a_node_lists_the_scarce_resource_classes() -> None:
    """Only nodes that are up and allowed count: more room on a node that is down does not help."""
    selector = selector_of(host("a", vcpu=4), host("b", vcpu=6), host("c", vcpu=80, status="down"), host("d", used=9))

    def lacks(vcpu: int, exclude: list[int] | None = None, **more: Any) -> tuple[Lack, ...]:
        return selector.lacks(asked(vcpu, **more), exclude or [])

    assert lacks(9) == (Lack("VCPU", 9, 6),)
    assert lacks(9, resources={"VCPU": 6, "PGPU": 1}) == (Lack("PGPU", 1, 0),)
    assert lacks(5, exclude=[1]) == (Lack("VCPU", 5, 4),)
    assert lacks(1, force_nodes=["d"]) == (Lack("VCPU", 1, 0),)
    assert lacks(6, zone="az9") == (), "there is room"
    assert lacks(1, force_nodes=["c"]) == (), "it is down"
    [first, second] = selector.choices(asked(6, count=2))
    assert (first.node, first.lacks) == ("b", ())
    assert second.lacks == (Lack("VCPU", 6, 4),), "less the room of the instance before"


def test_excluded_nodes_are_not_counted() -> None:
    """A node that refused the instance before is not one that a filter could leave."""
    selector = selector_of(host("a"), host("b"), host("c", vcpu=1))
    assert left(selector.remaining(asked(2), exclude=[0]))["all"] == 2
    assert left(selector.remaining(asked(2), exclude=[0]))["resources"] == 1


def test_weights_of_an_explanation_add_up_to_the_ranking() -> None:
    """The sum of the weights, each by its multiplier, is the score of a node, up to the width of a tie."""
    selector = selector_of(
        *(host(f"n{n}", used=n, zone=f"az{n % 2}", instances={f"{n}": "web"} if n < 3 else {}) for n in range(8))
    )
    group = {"name": "web", "policy": "soft-anti-affinity"}
    request = asked(1, group=group, spread_by="zone", weights={"pack": -0.5, "ram": 0.0})
    found = selector.explain(request, count=8)
    names = [name for name, _ in found.best]
    assert len(names) == 8
    assert all(
        parts.keys() == {"cpu", "disk", "pack", "soft_affinity", "soft_anti_affinity", "spread"}
        for _, parts in found.best
    )
    for row, (name, parts) in zip(selector.best(request, 8), found.best, strict=True):
        assert selector.fleet.names[row] == name
        score = selector._ranking(request).score[row] * TIE_WIDTH
        assert abs(sum(parts.values()) - score) < TIE_WIDTH + 0.001
    assert dict(found.best)["n0"]["cpu"] == 0.875
    assert left(found.remaining)["group"] == 8


def test_blocked_node_stays_blocked_during_a_selection() -> None:
    """The assumed instance replaces the row's overlay, which says that the node is blocked."""
    selector = selector_of(host("a"), host("b"))
    replaced: dict[int, OutstandingClaims | None] = {}
    selector.fleet.overlay(0, OutstandingClaims(blocked=True))
    selector.assume(0, "vm", asked(1), replaced)
    assert selector.fleet.usable[selector.fleet.all].tolist() == [False, True]
    assert replaced == {0: OutstandingClaims(blocked=True)}


def test_failed_selection_leaves_the_fleet_as_it_was() -> None:
    """The instances that a selection assumes are for that selection alone."""

    def fail(*_: object) -> float:
        raise ZeroDivisionError

    fleet = fleet_of(host("a"), host("b"))
    fleet.overlay(0, OutstandingClaims({"VCPU": 1}, {"1": "web"}))
    calls = iter([0.0, 1.0])
    weighers = {"bad": Weigher(lambda *_: next(calls, None) or fail())}
    selector = Selector(fleet, Policies(dict(FILTERS), weighers), 1)
    with pytest.raises(PolicyError, match="'bad'"):
        selector.choices(asked(1, count=3, group=ANTI))
    assert fleet.free["VCPU"][fleet.all].tolist() == [7, 8]
    assert fleet.groups == {"web": {0: 1}}


def test_kept_ranking_follows_the_fleet() -> None:
    """The same shape is selected again after nodes changed, appeared and left."""
    cell = ChangingPartition(host("a", used=1), host("b", used=2))
    selector = selector_of()
    selector.fleet.advance(cell.view)
    assert chosen(selector, asked(1)) == ["a"]
    cell.change(host("a", 2, used=5))
    selector.fleet.advance(cell.view)
    assert chosen(selector, asked(1)) == ["b"]
    cell.change(*(host(f"c{n}", vcpu=800) for n in range(300)))
    selector.fleet.advance(cell.view)
    assert str(chosen(selector, asked(1))[0])[0] == "c"


def test_number_of_kept_rankings_is_bounded() -> None:
    """Each ranking is an array over all nodes, and shapes come from users."""
    selector = selector_of(host("a", vcpu=1_000))
    for vcpu in range(1, 3 * KEPT_RANKINGS_COUNT):
        assert chosen(selector, asked(vcpu)) == ["a"]
    assert len(selector._rankings) == KEPT_RANKINGS_COUNT


def test_schedulers_with_different_seeds_take_different_nodes_among_equals() -> None:
    """Otherwise all would take the same one."""
    firsts = {chosen(selector_of(*(host(f"n{n}") for n in range(64)), seed=seed), asked(1))[0] for seed in range(8)}
    assert len(firsts) >= 6


def test_largest_count_is_placed_on_as_many_nodes() -> None:
    """1,000 instances at once, each on a node of its own."""
    selector = selector_of(*(host(f"n{n}") for n in range(1_000)))
    nodes: list[Any] = chosen(selector, asked(8, count=1_000))
    assert sorted(nodes) == sorted(f"n{n}" for n in range(1_000))
    assert WEIGHERS.keys() == selector.policies.weighers.keys()
