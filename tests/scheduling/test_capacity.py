"""Capacity: the sums over the fleet, how many instances of a request fit, and questions of the form "what if"."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from nodestate.errors import NotFoundError
from nodestate.scheduling import Request, capacity_of, fit_of, parse, what_if
from nodestate.scheduling.capacity import MAX_PLACED_COUNT
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.scheduling.selection import Remaining, Selector
from tests.scheduling.cells import boot, cell_of, wanted
from tests.scheduling.fleets import asked, node, selector_of

ZONES = ("", "az1", "az2", "az3")
TRAITS = ("HW_CPU_X86_AVX2", "STORAGE_DISK_SSD")
AGGREGATES = ("rack-1", "rack-2", "rack-3")


def random_selector(rng: random.Random) -> Selector:
    """A fleet with zones, aggregates, traits, ratios, units, groups, claims and closed nodes."""
    records = []
    for number in range(rng.randint(1, 9)):
        vcpu, memory = rng.randint(0, 9), rng.randint(0, 4_000)
        allocations = {
            f"i{number}-{one}": {
                "resources": {"VCPU": 1},
                "group": rng.choice(["web", "db", "solo"]),
                "hints": {},
            }
            for one in range(rng.randint(0, 2))
        }
        records.append(
            node(
                f"n{number}",
                state={
                    "status": rng.choice(["up", "up", "up", "up", "draining", "down"]),
                    "zone": rng.choice(ZONES),
                    "traits": rng.sample(TRAITS, rng.randint(0, 2)),
                    "aggregates": rng.sample(AGGREGATES, rng.randint(0, 2)),
                    "inventory": {
                        "VCPU": {
                            "total": vcpu,
                            "reserved": rng.choice([0, 1]),
                            "allocation_ratio": rng.choice([1.0, 1.5, 4.0]),
                            "max_unit": rng.choice([2, 64]),
                        },
                        "MEMORY_MB": {"total": memory, "step_size": rng.choice([1, 256])},
                    },
                    "usage": {"VCPU": rng.randint(0, 4), "MEMORY_MB": rng.randint(0, 1_000)},
                    "allocations": allocations,
                },
            )
        )
    selector = selector_of(*records, seed=rng.randrange(100))
    for row in range(len(records)):
        if rng.random() < 0.3:
            claimed = OutstandingClaims({"VCPU": rng.randint(0, 2)}, {f"c{row}": rng.choice([None, "web"])})
            selector.fleet.overlay(row, claimed)
    return selector


def random_request(rng: random.Random) -> dict[str, Any]:
    request: dict[str, Any] = {"resources": {"VCPU": rng.randint(1, 3), "MEMORY_MB": rng.choice([0, 256, 500])}}
    if rng.random() < 0.3:
        request["required_traits"] = [rng.choice(TRAITS)]
    if rng.random() < 0.2:
        request["zone"] = rng.choice(ZONES[1:])
    if rng.random() < 0.2:
        request["aggregates"] = [rng.choice(AGGREGATES)]
    if rng.random() < 0.2:
        request["different_host"] = ["i0-0", "c1"]
    if rng.random() < 0.8:
        policy = rng.choice(["affinity", "anti-affinity", "anti-affinity", "soft-anti-affinity"])
        request["group"] = {"name": rng.choice(["web", "db", "new"]), "policy": policy}
        if policy == "anti-affinity":
            request["group"]["max_per_node"] = rng.randint(1, 3)
        if policy != "affinity" and rng.random() < 0.4:
            request["spread"] = {"by": "zone", "max_skew": rng.randint(1, 3)}
    return request


def placed_until_refused(selector: Selector, content: dict[str, Any]) -> tuple[int, tuple[Remaining, ...]]:
    """Ask for one instance more each time, until not all get a node; and how the last one fared alone."""
    if content.get("group", {}).get("policy") != "affinity":
        placed, remaining, _ = selector.fill(parse(content), 10_000)
        return placed, remaining
    count = 0
    while all(choice.node is not None for choice in selector.choices(parse({**content, "count": count + 1}))):
        count += 1
    return count, ()


@pytest.mark.parametrize("seed", range(20))
def test_as_many_instances_fit_as_are_placed_until_one_is_refused(seed: int) -> None:
    rng = random.Random(f"capacity {seed}")
    selector = random_selector(rng)
    for _ in range(25):
        content = random_request(rng)
        fit = fit_of(selector, parse(content))
        placed, remaining = placed_until_refused(selector, content)
        assert fit.fits == placed, content
        assert fit.remaining[-1].nodes == 0
        assert fit.reason
        assert (fit.nodes > 0) == (placed > 0)
        if remaining and "spread" not in content:
            assert fit.remaining == remaining, content


def test_the_members_of_an_affinity_group_fit_where_the_largest_room_is() -> None:
    selector = selector_of(*(node(f"n{vcpu}", state={"inventory": {"VCPU": {"total": vcpu}}}) for vcpu in (3, 8, 5)))
    request = asked(2, group={"name": "near", "policy": "affinity"})
    assert fit_of(selector, request).fits == 4
    selector.fleet.overlay(0, OutstandingClaims({}, {"member": "near"}))
    fit = fit_of(selector, request)
    assert (fit.fits, fit.nodes, fit.reason) == (
        1,
        1,
        "the filter group removed the last 2 of 3 nodes",
    )


def test_a_spread_over_aggregates_is_counted_by_placing() -> None:
    states = [{"inventory": {"VCPU": {"total": 4}}, "aggregates": [f"rack-{n % 2}"]} for n in range(3)]
    selector = selector_of(*(node(f"n{n}", state=state) for n, state in enumerate(states)))
    request = asked(1, group={"name": "web", "policy": "soft-anti-affinity"}, spread={"by": "aggregate"})
    fit = fit_of(selector, request)
    assert (fit.fits, fit.is_minimum, fit.nodes) == (9, False, 3)
    large = selector_of(
        *(
            node(f"n{n}", state={"inventory": {"VCPU": {"total": 4 * MAX_PLACED_COUNT}}, "aggregates": [f"r{n}"]})
            for n in range(2)
        )
    )
    fit = fit_of(large, request)
    assert (fit.fits, fit.is_minimum, fit.remaining) == (MAX_PLACED_COUNT, True, ())


def test_a_request_without_resources_fits_without_limit_unless_its_group_has_one() -> None:
    selector = selector_of(node("a", state={}), node("b", state={}))
    assert fit_of(selector, Request(resources={})).fits is None
    group = {"name": "web", "policy": "anti-affinity", "max_per_node": 3}
    assert fit_of(selector, parse({"resources": {}, "group": group})).fits == 6


def test_a_group_of_another_policy_lets_nothing_fit_and_the_reason_names_it() -> None:
    hints = {"group_policy": "affinity"}
    member = {"resources": {"VCPU": 1}, "group": "web", "hints": hints}
    selector = selector_of(node("a", state={"inventory": {"VCPU": {"total": 4}}, "allocations": {"i": member}}))
    fit = fit_of(selector, asked(1, group={"name": "web", "policy": "anti-affinity"}))
    assert fit.fits == 0
    assert "group web has the policy affinity" in fit.reason


@pytest.mark.parametrize("seed", range(5))
def test_the_sums_of_a_fleet_are_those_of_its_nodes(seed: int) -> None:
    selector = random_selector(random.Random(f"sums {seed}"))
    fleet, found = selector.fleet, capacity_of(selector.fleet)

    def summed(rows: list[int]) -> dict[str, tuple[int, int, int, int]]:
        sums = {}
        for name, (capacity, used) in fleet.amounts.items():
            free = fleet.free[name]
            amounts = (
                sum(int(capacity[row]) for row in rows),
                sum(int(used[row]) for row in rows),
                sum(int(capacity[row] - used[row] - free[row]) for row in rows),
                sum(max(0, int(free[row])) for row in rows if fleet.usable[row]),
            )
            if any(amounts):
                sums[name] = amounts
        return sums

    parts = {"whole": (found.whole, list(range(len(fleet))))}
    for zone, part in found.zones.items():
        parts[f"zone {zone}"] = (part, np.flatnonzero(fleet.zone[fleet.all] == fleet.zones[zone]).tolist())
    for word, part in found.aggregates.items():
        parts[word] = (part, fleet.aggregates.rows_of(word, len(fleet)).tolist())
    for name, (part, rows) in parts.items():
        sums = {one: (c.total, c.used, c.claimed, c.free) for one, c in part.classes.items()}
        assert sums == summed(rows), name
        assert (part.nodes, part.open_nodes) == (len(rows), sum(bool(fleet.usable[row]) for row in rows))
    assert sum(part.nodes for part in found.zones.values()) == found.whole.nodes


def test_a_node_that_is_gone_has_no_capacity() -> None:
    selector = selector_of(node("a", state={"inventory": {"VCPU": {"total": 4}}}), node("b"))
    assert capacity_of(selector.fleet).whole.nodes == 1


def test_an_empty_fleet_has_no_capacity() -> None:
    selector = selector_of()
    assert capacity_of(selector.fleet).whole.nodes == 0
    fit = fit_of(selector, asked(1, group={"name": "web", "policy": "soft-anti-affinity"}, spread={"by": "zone"}))
    assert (fit.fits, fit.nodes, fit.reason) == (0, 0, "no node is known")


# -- what if ----------------------------------------------------------------------------------------


def test_the_answer_without_nodes_is_the_one_after_they_are_really_removed() -> None:
    cell, [process, other] = cell_of(5, 2)
    scheduler = process.scheduler
    group = {"name": "web", "policy": "anti-affinity"}
    for number in range(3):
        boot(scheduler, f"w{number}", 2, group=group)
    boot(scheduler, "large", 7)
    scheduler.claim([parse(wanted("claimed", 3))])
    [whole] = scheduler.select(parse({"instances": ["x"], "resources": {"VCPU": 1}}))
    assert whole.node is not None
    request = parse({"resources": {"VCPU": 2, "MEMORY_MB": 100}, "count": 4, "group": group})
    before = (scheduler.fleet.changes, scheduler.fleet.free["VCPU"].copy())
    asked_first = what_if(scheduler.session, request, without=["n0", "n3"])
    assert scheduler.fleet.changes == before[0]
    assert (scheduler.fleet.free["VCPU"] == before[1]).all()

    for name in ("n0", "n3"):
        publisher = cell.agent.publishers[name]
        publisher.report({})
        publisher.leave()
    cell.run_for(3.0)
    asked_later = what_if(scheduler.session, request)
    fresh = cell.start_scheduler("fresh").scheduler
    fresh.refresh()
    assert [choice.node is None for choice in asked_first.choices] == [
        choice.node is None for choice in fresh.selector.choices(request)
    ]
    for one in (asked_first, asked_later):
        assert one.fit == fit_of(fresh.selector, request)
        assert one.explanation.remaining == fresh.explain(request).remaining
        assert {name for name, _ in one.explanation.best} == {name for name, _ in fresh.explain(request).best}
    del other


def test_assumed_empty_nodes_have_all_their_room_and_no_members() -> None:
    _, [process] = cell_of(2, 1)
    group = {"name": "web", "policy": "anti-affinity"}
    boot(process.scheduler, "w0", 8, group=group)
    boot(process.scheduler, "w1", 8, group=group)
    process.scheduler.claim([parse(wanted("claimed", 1))])
    request = parse({"resources": {"VCPU": 8}, "count": 2, "group": group})
    assert what_if(process.scheduler.session, request).fit.fits == 0
    answer = what_if(process.scheduler.session, request, assume_empty=True)
    assert {choice.node for choice in answer.choices} == {"n0", "n1"}
    assert what_if(process.scheduler.session, request, without=["n1"], assume_empty=True).fit.fits == 1


def test_an_unknown_node_in_a_question_is_an_error() -> None:
    _, [process] = cell_of(1, 1)
    with pytest.raises(NotFoundError, match="without: no node nowhere is known"):
        what_if(process.scheduler.session, asked(1), without=["nowhere"])
