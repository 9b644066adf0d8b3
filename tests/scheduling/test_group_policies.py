"""Policies of groups: a group has one policy, and a new member with another policy is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservations import NotReserved
from tests.scheduling.cells import boot, cell_of, losing_answers, wanted
from tests.scheduling.fleets import asked, chosen, host, selector_of

APART: dict[str, Any] = {"name": "g", "policy": "anti-affinity"}
OTHERS: list[dict[str, Any]] = [
    {"name": "g", "policy": "soft-anti-affinity"},
    {"name": "g", "policy": "affinity"},
    {"name": "g", "policy": "anti-affinity", "max_per_node": 2},
]


def refusal(outcomes: list[Any]) -> str:
    """The reason of the one outcome, which must be a failure."""
    [outcome] = outcomes
    assert isinstance(outcome, Failed), outcome
    return str(outcome.reason)


@pytest.mark.parametrize("other", OTHERS)
def test_a_new_member_with_another_policy_than_its_group_is_refused_by_the_scheduler(other: dict[str, Any]) -> None:
    cell, (one, two) = cell_of(3)
    node = boot(one.scheduler, "a", group=APART).node
    cell.run_for(2.0)
    text = refusal(two.scheduler.boot(parse(wanted("b", group=other))))
    assert text.startswith(
        f"group g has the policy anti-affinity, under which a is on {node}, and the request asks for"
    )
    assert text.endswith("; ask for the group's policy, or name another group")
    [choice] = two.scheduler.select(parse(wanted("b", group=other)))
    assert (choice.node, choice.unknown) == (None, text)
    reserved = two.scheduler.reservations.reserve(parse_group({"members": [wanted("b")], "group": other}))
    assert isinstance(reserved, NotReserved)
    assert str(reserved.reason) == text
    assert isinstance(two.scheduler.boot(parse(wanted("b", group=APART)))[0], Booted)


def test_the_policies_of_members_that_are_only_claimed_count() -> None:
    """Also of members of the same batch, whose claims are not written."""
    cell, (one, two) = cell_of(3)
    first, second = one.scheduler.claim([parse(wanted("a", group=APART)), parse(wanted("b", group=OTHERS[0]))])
    assert first.node is not None
    assert second.node is None
    two.scheduler.claim_table.read_records(cell.fleet.nodes())
    assert "under which a is on" in refusal(two.scheduler.boot(parse(wanted("c", group=OTHERS[0]))))


def test_a_claim_of_another_policy_that_was_dropped_does_not_refuse_a_member() -> None:
    """The scheduler reads the claims of others again before it refuses."""
    cell, (one, two) = cell_of(3)
    placings = one.scheduler.claim([parse(wanted("a", group=APART))])
    two.scheduler.claim_table.read_records(cell.fleet.nodes())
    one.scheduler.placer.give_back(placings)
    assert isinstance(two.scheduler.boot(parse(wanted("b", group=OTHERS[0])))[0], Booted)


def test_instances_without_a_policy_contradict_no_policy() -> None:
    """Another service than a scheduler of nodestate named the group."""
    selector = selector_of(host("a", instances={"1": "g"}), host("b"))
    assert chosen(selector, asked(group=APART)) == ["b"]


def test_members_of_a_group_with_two_policies_can_still_be_evacuated() -> None:
    """The group is from before members were compared, or two schedulers began it at the same moment."""
    cell, (one, _) = cell_of(3)
    for instance, group, node in (("a", APART, "n0"), ("b", OTHERS[0], "n1")):
        hints = {"group_policy": group["policy"], "order": f"1-{instance}"}
        cell.fleet.kill(node)
        cell.fleet.build(node, instance, {"resources": {"VCPU": 1}, "group": "g", "hints": hints})
        cell.fleet.revive(node)
    cell.run_for(2.0)
    [moved] = one.scheduler.migrations.evacuate("n0")
    assert isinstance(moved, Booted)
    assert moved.node == "n2"


def test_a_boot_that_is_tried_again_after_a_silent_node_does_not_contradict_its_own_claim() -> None:
    cell, (one, _) = cell_of(3)
    with losing_answers(cell):
        [begun] = one.scheduler.submit(parse(wanted("a", group=OTHERS[2])))
        one.scheduler.step()
        cell.clock.advance(cell.config.answer_timeout_s)
        one.scheduler.step()
    one.scheduler.run(lambda: begun.outcome is not None, 30.0)
    assert isinstance(begun.outcome, Booted)
