"""Hard groups as a whole: all members that are placed at once get a node, or none of them gets one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodestate.model.orders import Build, decode_answer, decode_order
from nodestate.scheduling.claims import Placing, join_groups
from nodestate.scheduling.orders.boot import Boot, Booted, BootOutcome, Failed
from nodestate.scheduling.orders.termination_orders import TERMINATION_RETRY_S
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.session import Operation
from nodestate.testing import TransitMessage
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import boot, wanted
from tests.scheduling.claim_tables import CLAIM_TTL_S, Parties
from tests.scheduling.fleets import ChangingPartition, asked, chosen, host, selector_of

TOGETHER = {"name": "web", "policy": "affinity"}
THREE = {"instances": ["a", "b", "c"], "resources": {"VCPU": 4}, "group": TOGETHER}
PACK = {"cpu": -4.0, "ram": -4.0, "pack": 4.0}
"""Weights with which the node that has the least room looks best."""


def node_state(vcpu: int) -> dict[str, Any]:
    return {"status": "up", "inventory": {"VCPU": {"total": vcpu}, "MEMORY_MB": {"total": 64_000}}}


def cell_with(schedulers: int = 1, **vcpu: int) -> tuple[SchedulingCell, list[SchedulerProcess]]:
    """A cell of nodes with these names and numbers of processors."""
    cell = SchedulingCell({name: node_state(count) for name, count in vcpu.items()})
    cell.wait_until_complete()
    processes = [cell.start_scheduler(f"s{number}") for number in range(schedulers)]
    for process in processes:
        process.scheduler.refresh()
    cell.run_for(12.0)
    return cell, processes


def nodes_of(outcomes: list[BootOutcome]) -> list[str | None]:
    return [outcome.node if isinstance(outcome, Booted) else None for outcome in outcomes]


def test_a_boot_places_an_affinity_group_on_the_node_with_room_for_all_members() -> None:
    """The node ``small`` looks best for the first member, and has room for two of the three."""
    cell, (one,) = cell_with(small=8, large=14)
    outcomes = one.scheduler.boot(parse({**THREE, "weights": PACK}))
    assert nodes_of(outcomes) == ["large"] * 3
    cell.run_for(2.0)
    assert cell.nodes_by_instance() == {"a": ["large"], "b": ["large"], "c": ["large"]}


def test_a_boot_of_an_affinity_group_that_fits_nowhere_builds_no_member_and_says_why() -> None:
    cell, (one,) = cell_with(small=8, large=11)
    outcomes = one.scheduler.boot(parse({**THREE, "weights": PACK}))
    reasons = {str(outcome.reason) for outcome in outcomes if isinstance(outcome, Failed)}
    expected = (
        "no node takes all 3 instances of affinity group web: the filter resources removed the last 2 of 2 nodes; "
        "VCPU: 12 wanted, at most 11 free on a node"
    )
    assert reasons == {expected}
    cell.run_for(2.0)
    assert cell.nodes_by_instance() == {}
    assert [claim for node in ("small", "large") for claim in cell.claims(node)] == []


def test_new_members_join_the_node_of_their_group_all_together_or_not_at_all() -> None:
    _, (one,) = cell_with(small=8, large=14)
    assert boot(one.scheduler, "first", 4, group=TOGETHER, force_nodes=["small"]).node == "small"
    outcomes = one.scheduler.boot(parse(THREE))
    assert nodes_of(outcomes) == [None] * 3


def test_a_selection_shows_the_node_that_a_boot_of_the_whole_group_would_get() -> None:
    selector = selector_of(host("small", vcpu=8), host("large", vcpu=14))
    assert chosen(selector, asked(4, count=3, group=TOGETHER, weights=PACK)) == ["large"] * 3
    assert chosen(selector, asked(5, count=3, group=TOGETHER, weights=PACK)) == [None] * 3


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_boot_of_an_anti_affinity_group_builds_all_members_or_none(nodes: int) -> None:
    cell, (one,) = cell_with(**{f"n{number}": 8 for number in range(nodes)})
    request = parse({**THREE, "group": {"name": "web", "policy": "anti-affinity"}})
    choices = one.scheduler.select(request)
    outcomes = one.scheduler.boot(request)
    assert len({choice.node for choice in choices}) == (3 if nodes == 3 else 1)
    if nodes == 3:
        assert sorted(nodes_of(outcomes), key=str) == ["n0", "n1", "n2"]
        return
    assert nodes_of(outcomes) == [None] * 3
    reasons = sorted(str(outcome.reason) for outcome in outcomes if isinstance(outcome, Failed))
    assert [reason for reason in reasons if reason.startswith("the filter group removed the last 2 of 2 nodes")]
    assert sum("of the same group got no node" in reason for reason in reasons) == 2
    cell.run_for(2.0)
    assert [claim for name in ("n0", "n1") for claim in cell.claims(name)] == []


def test_members_of_an_anti_affinity_group_are_ended_if_the_agents_refuse_one_of_them_everywhere() -> None:
    cell, (one,) = cell_with(n0=8, n1=8, n2=8)
    one.scheduler.refresh()
    one.reader.lagging = True
    cell.fleet.build("n1", "intruder", {"resources": {"VCPU": 8}, "hints": {}})
    outcomes = one.scheduler.boot(parse({**THREE, "group": {"name": "web", "policy": "anti-affinity"}}))
    one.reader.lagging = False
    assert nodes_of(outcomes) == [None] * 3
    cell.run_for(3 * TERMINATION_RETRY_S)
    assert list(cell.nodes_by_instance()) == ["intruder"]


def test_a_reservation_places_the_affinity_groups_of_its_members_as_a_whole() -> None:
    """Each member names a group of its own, and the reservation has none."""
    _, (one,) = cell_with(small=8, large=14)
    request = {"members": [{**THREE, "weights": PACK}, wanted("d", 8)]}
    held = one.scheduler.reservations.reserve(parse_group(request))
    assert isinstance(held, Reservation), held
    assert {member.instance: member.node for member in held.members} == {
        "a": "large", "b": "large", "c": "large", "d": "small",
    }  # fmt: skip


def test_an_evacuation_moves_an_affinity_group_to_one_node_with_room_for_all_members() -> None:
    cell, (one,) = cell_with(source=16, small=8, large=14)
    booted = one.scheduler.boot(parse({**THREE, "weights": PACK, "force_nodes": ["source"]}))
    assert nodes_of(booted) == ["source"] * 3
    cell.run_for(2.0)
    assert nodes_of(one.scheduler.migrations.evacuate("source")) == ["large"] * 3
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {"a": ["large"], "b": ["large"], "c": ["large"]}


def test_an_evacuation_without_room_for_a_whole_affinity_group_leaves_all_members_and_moves_the_others() -> None:
    cell, (one,) = cell_with(source=16, small=8, large=8)
    one.scheduler.boot(parse({**THREE, "weights": PACK, "force_nodes": ["source"]}))
    boot(one.scheduler, "alone", 4, force_nodes=["source"])
    cell.run_for(2.0)
    outcomes = {outcome.instance: outcome for outcome in one.scheduler.migrations.evacuate("source")}
    assert isinstance(outcomes["alone"], Booted)
    failed = [str(outcomes[name].reason) for name in "abc" if isinstance(outcomes[name], Failed)]
    assert len(failed) == 3
    assert all(reason.startswith("no node takes all 3 instances of affinity group web: ") for reason in failed), failed
    cell.run_for(10.0)
    assert {name: nodes for name, nodes in cell.nodes_by_instance().items() if name != "alone"} == {
        "a": ["source"], "b": ["source"], "c": ["source"],
    }  # fmt: skip


def test_an_affinity_group_moves_to_another_node_as_a_whole_if_no_agent_listens_on_the_first() -> None:
    cell, (one,) = cell_with(best=14, other=16)
    del cell.broker.transit.listeners["best"]
    outcomes = one.scheduler.boot(parse({**THREE, "weights": PACK}))
    assert nodes_of(outcomes) == ["other"] * 3
    cell.run_for(2.0)
    assert cell.nodes_by_instance() == {"a": ["other"], "b": ["other"], "c": ["other"]}


@pytest.mark.parametrize("members", [1, 3])
def test_an_affinity_group_whose_first_node_does_not_answer_is_built_on_another_node(members: int) -> None:
    """The claims that are left on the silent node do not bind the group to it."""
    cell, (one,) = cell_with(best=14, other=16)
    arrive = cell.broker.transit.arrive
    lost: set[str] = set()

    def lose_first_orders(message: TransitMessage) -> None:
        order = decode_order(message.body) if message.kind == "order" else None
        if isinstance(order, Build) and order.node == "best":
            lost.add(order.instance)
        else:
            arrive(message)

    cell.broker.transit.arrive = lose_first_orders  # type: ignore[method-assign]  # loses the orders of one node
    names = ["a", "b", "c"][:members]
    outcomes = one.scheduler.boot(parse({**THREE, "instances": names, "weights": PACK}))
    assert lost == set(names)
    assert nodes_of(outcomes) == ["other"] * members


@pytest.mark.parametrize("moves", [False, True])
def test_if_an_agent_refuses_one_member_of_an_affinity_group_no_member_is_built(moves: bool) -> None:
    """The node lost room after the scheduler's last view: two members fit, and the third does not."""
    cell, (one,) = cell_with(source=16, target=14)
    if moves:
        one.scheduler.boot(parse({**THREE, "weights": PACK, "force_nodes": ["source"]}))
        cell.run_for(2.0)
    one.scheduler.refresh()
    one.reader.lagging = True
    intruder = {"resources": {"VCPU": 4}, "hints": {}}
    cell.fleet.build("target", "intruder", intruder)
    if moves:
        outcomes = one.scheduler.migrations.evacuate("source")
    else:
        outcomes = one.scheduler.boot(parse({**THREE, "force_nodes": ["target"]}))
    one.reader.lagging = False
    assert nodes_of(outcomes) == [None] * 3
    reasons = {outcome.instance: str(outcome.reason) for outcome in outcomes if isinstance(outcome, Failed)}
    refused = [name for name, reason in reasons.items() if "target refused it: no-room" in reason]
    assert refused
    cell.run_for(3 * TERMINATION_RETRY_S)
    there = {name: nodes for name, nodes in cell.nodes_by_instance().items() if name != "intruder"}
    assert there == ({name: ["source"] for name in "abc"} if moves else {})


def test_members_that_left_a_dead_node_are_not_sent_back_if_an_agent_refuses_another_member() -> None:
    """They run on their new node, and the scheduler says so. The refused member stays where it was."""
    cell, (one,) = cell_with(source=16, target=14)
    one.scheduler.boot(parse({**THREE, "force_nodes": ["source"]}))
    cell.run_for(2.0)
    cell.fleet.kill("source")
    cell.run_for(3 * cell.config.heartbeat_s + 10.0)
    cell.fleet.build("target", "intruder", {"resources": {"VCPU": 4}, "hints": {}})  # in no report so far
    outcomes = {outcome.instance: outcome for outcome in one.scheduler.migrations.evacuate("source")}
    moved = [name for name, outcome in outcomes.items() if isinstance(outcome, Booted)]
    assert len(moved) == 2
    cell.run_for(3 * TERMINATION_RETRY_S)
    assert {name for name in "abc" if "target" in cell.nodes_by_instance()[name]} == set(moved)


def test_a_member_that_is_terminated_during_an_evacuation_does_not_stop_its_group() -> None:
    cell, (one, two) = cell_with(2, source=16, large=14)
    one.scheduler.boot(parse({**THREE, "force_nodes": ["source"]}))
    cell.run_for(2.0)
    boot = one.scheduler.session.boot

    def terminate_first(*arguments: Any) -> Operation[list[BootOutcome]]:
        two.scheduler.terminations.terminate([("source", "b")])
        cell.run_for(2.0)
        return boot(*arguments)

    one.scheduler.session.boot = terminate_first  # type: ignore[method-assign]  # acts before the boots begin
    outcomes = {outcome.instance: outcome for outcome in one.scheduler.migrations.evacuate("source")}
    assert isinstance(outcomes["b"], Failed)
    assert nodes_of([outcomes["a"], outcomes["c"]]) == ["large"] * 2


def test_a_member_that_cannot_be_migrated_keeps_its_affinity_group_on_the_node() -> None:
    """Its hints are no valid request. The others would be split from it."""
    cell, (one,) = cell_with(source=16, large=14)
    one.scheduler.boot(parse({**THREE, "force_nodes": ["source"]}))
    allocation = cell.fleet.resources_of("source").allocations["b"]
    cell.fleet.build("source", "b", {**allocation, "hints": {**allocation["hints"], "required_traits": ["no trait"]}})
    cell.fleet.revive("source")
    cell.run_for(2.0)
    outcomes = {outcome.instance: outcome for outcome in one.scheduler.migrations.evacuate("source")}
    assert nodes_of([outcomes[name] for name in "abc"]) == [None] * 3


def test_members_with_different_constraints_go_to_the_node_that_meets_all_of_them() -> None:
    """The node that looks best for the first member lacks the trait of the second."""
    parties = Parties("one")
    trait = {"traits": ["HW_CPU_X86_AVX2"]}
    parties.show(ChangingPartition(host("a", vcpu=40), host("b", vcpu=20, **trait), host("c", vcpu=30)).view)
    parties.clock.advance(12.0)
    [one] = parties.parties
    requests = [asked(4, group=TOGETHER), asked(4, group=TOGETHER, required_traits=["HW_CPU_X86_AVX2"])]
    placings = [Placing(request, name, CLAIM_TTL_S) for request, name in zip(requests, "xy", strict=True)]
    join_groups(placings, "affinity")
    one.placer.place(placings)
    assert [placing.node for placing in placings] == ["b", "b"]


FATES = st.sampled_from(["arrives", "arrives", "arrives", "is lost", "its answer is lost"])


@given(
    st.lists(st.integers(2, 12), min_size=2, max_size=4),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.lists(FATES, max_size=12),
    st.dictionaries(st.integers(0, 3), st.integers(1, 4), max_size=2),
    st.sampled_from(["affinity", "anti-affinity", "evacuation"]),
)
@settings(max_examples=15)
def test_a_hard_group_is_built_as_a_whole_or_not_at_all_whatever_happens_to_its_orders(
    nodes: list[int], members: list[int], fates: list[str], intruders: dict[int, int], case: str
) -> None:
    """Orders and answers are lost, and nodes have less room than the scheduler's view shows."""
    sizes = {f"n{number}": vcpu for number, vcpu in enumerate(nodes)}
    cell, (one,) = cell_with(source=16, **sizes)
    names = [f"m{number}" for number in range(len(members))]
    evacuates = case == "evacuation"
    policy = {"name": "web", "policy": "affinity" if evacuates else case}
    for name, vcpu in zip(names, members, strict=True):
        if evacuates:
            boot(one.scheduler, name, vcpu, group=policy, force_nodes=["source"])
    cell.run_for(2.0)
    one.scheduler.refresh()
    one.reader.lagging = True
    for number, vcpu in intruders.items():
        if vcpu <= sizes.get(f"n{number}", 0):
            cell.fleet.build(f"n{number}", f"intruder {number}", {"resources": {"VCPU": vcpu}, "hints": {}})
    arrive, left, mute = cell.broker.transit.arrive, iter(fates), set[str]()

    def arrive_or_not(message: TransitMessage) -> None:
        order = decode_order(message.body) if message.kind == "order" else None
        fate = next(left, "arrives") if isinstance(order, Build) else "arrives"
        if isinstance(order, Build) and fate == "its answer is lost":
            mute.add(order.id)
        if fate != "is lost" and (message.kind != "answer" or decode_answer(message.body).id not in mute):
            arrive(message)

    cell.broker.transit.arrive = arrive_or_not  # type: ignore[method-assign]  # loses some messages
    if evacuates:
        outcomes = one.scheduler.migrations.evacuate("source", timeout_s=300.0)
    else:
        requests = [asked(vcpu, group=policy, ignore_nodes=["source"]) for vcpu in members]
        placings = [Placing(request, name, 10.0) for request, name in zip(requests, names, strict=True)]
        join_groups(placings, "affinity", "anti-affinity")
        outcomes = one.scheduler.session.run_boots([Boot(placing) for placing in placings], 300.0)
    one.reader.lagging = False
    cell.run_for(60.0)
    there = {name: at for name, at in cell.nodes_by_instance().items() if name.startswith("m")}
    booted = {outcome.instance: [outcome.node] for outcome in outcomes if isinstance(outcome, Booted)}
    assert there == (booted or ({name: ["source"] for name in names} if evacuates else {}))
    assert len(booted) in (0, len(members))
    if booted:
        assert len({node for [node] in booted.values()}) == (len(members) if case == "anti-affinity" else 1)
