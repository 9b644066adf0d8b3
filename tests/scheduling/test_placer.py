"""The placer: nodes for many instances at once, among schedulers that want the same nodes, in bounded time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.scheduling.claims import CLOCK_S, UNSURE_S
from nodestate.scheduling.claims.placer import MAX_TRIES_COUNT
from nodestate.scheduling.claims.placing import NoHostFound, Placing, join_groups
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.selection import Lack, Remaining
from nodestate.testing import Fault, MemoryServer
from tests.scheduling.claim_tables import CLAIM_TTL_S, Parties, Party
from tests.scheduling.fleets import ChangingPartition, asked, host

NEAR = {"name": "web", "policy": "affinity"}
ANTI = {"name": "web", "policy": "anti-affinity"}


def ready(*names: str, servers: int = 1, vcpu: int = 8, nodes: str = "abcdefgh", **more: Any) -> Parties:
    """Schedulers that have known these nodes for long, so that no record is unsure."""
    parties = Parties(*names, servers=servers)
    parties.show(ChangingPartition(*(host(name, vcpu=vcpu, **more) for name in nodes)).view)
    parties.clock.advance(UNSURE_S)
    return parties


def claimed(parties: Parties, nodes: str = "abcdefgh") -> dict[str, int]:
    """The claimed processors of each node, as the servers have them."""
    return {node: sum(claim.resources["VCPU"] for claim in parties.record(node).claims) for node in nodes}


def nodes_of(placings: list[Placing]) -> list[str | None]:
    """The node of each placing."""
    return [placing.node for placing in placings]


# -- units -----------------------------------------------------------------------------------------


def test_units_bound_each_member_of_an_affinity_group_and_not_their_sum() -> None:
    """Members that go to one node together are chosen by the sum of their amounts."""
    inventory = {"VCPU": {"total": 64, "max_unit": 4, "step_size": 2}}
    parties = ready("one", nodes="ab", inventory=inventory)
    [one] = parties.parties
    [first, *others] = one.place(asked(4, count=3, group=NEAR))
    assert first.node in {"a", "b"}
    assert nodes_of(others) == [first.node, first.node]
    together = [Placing(asked(4, group={**NEAR, "name": "db"}), f"db-{number}", CLAIM_TTL_S) for number in range(3)]
    join_groups(together, "affinity")
    one.placer.place(together)
    assert len(set(nodes_of(together))) == 1
    assert together[0].failure is None
    selected = one.placer._chooser._selector.choices(asked(4, count=3, group={**NEAR, "name": "x"}))
    assert selected[0].node is not None
    odd = [Placing(asked(3, group={**NEAR, "name": "odd"}), f"odd-{number}", CLAIM_TTL_S) for number in range(2)]
    join_groups(odd, "affinity")
    one.placer.place(odd)
    assert [str(placing.failure).count("no node gives 3 of VCPU to one instance") for placing in odd] == [1, 1]


# -- many at once ---------------------------------------------------------------------------------


def test_many_instances_cost_one_round_trip_without_competitors() -> None:
    """Each instance counts for the next, without a read in between."""
    parties = ready("one")
    [one] = parties.parties
    one.connections[0].calls.clear()
    placings = one.place(asked(2, count=32))
    assert Counter(nodes_of(placings)) == dict.fromkeys("abcdefgh", 4)
    assert claimed(parties) == dict.fromkeys("abcdefgh", 8)
    assert one.connections[0].calls == [("write", 8)]
    assert all(placing.settled and placing.failure is None and placing.conflicts == 0 for placing in placings)


def test_claim_has_everything_that_an_order_needs() -> None:
    """Another scheduler may finish the placement."""
    parties = ready("one")
    [one] = parties.parties
    request = asked(2, instances=["vm"], zone="", group=ANTI, required_traits=[], weights={"cpu": 2.0})
    [placing] = one.place(request, reservation="r1", members=3, owner="me", avoid_unsure=True)
    [claim] = parties.record(placing.node or "").claims
    assert claim == placing.claim
    assert (claim.instance, claim.holder, claim.resources, claim.group) == ("vm", "one", {"VCPU": 2}, "web")
    assert claim.hints == {"group_policy": "anti-affinity", "weights": {"cpu": 2.0}}
    assert (claim.reservation, claim.members, claim.owner, claim.kept, claim.resize) == ("r1", 3, "me", False, False)
    assert claim.until == parties.clock.monotonic() + CLAIM_TTL_S


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(0, 3))
def test_no_instance_fails_while_there_is_room_and_no_node_is_overfilled(sizes: list[int], seed: int) -> None:
    """Two schedulers, neither of which sees the other's claims in advance."""
    parties = ready(f"one{seed}", f"two{seed}", nodes="abc", vcpu=6)
    placings = []
    for number, size in enumerate(sizes):
        placings += parties.parties[number % 2].place(asked(size))
    taken = claimed(parties, "abc")
    assert all(amount <= 6 for amount in taken.values())
    assert sum(taken.values()) == sum(size for size, placing in zip(sizes, placings, strict=True) if placing.claim)
    for size, placing in zip(sizes, placings, strict=True):
        if placing.failure is not None:
            assert all(6 - amount < size for amount in taken.values()), (
                "there is less room at the end than when the instance failed"
            )


def test_instance_that_does_not_fit_fails_by_itself() -> None:
    """The others of its batch go on, and the failure has a reason."""
    parties = ready("one", nodes="ab", vcpu=4)
    [one] = parties.parties
    large, small = one.place(asked(9, instances=["large"]), asked(1, instances=["small"]))
    assert (large.node, large.claim, small.failure) == (None, None, None)
    assert str(large.failure) == (
        "the filter resources removed the last 2 of 2 nodes; VCPU: 9 wanted, at most 4 free on a node"
    )
    assert sum(claimed(parties, "ab").values()) == 1


def test_request_with_an_unknown_weigher_fails_by_itself() -> None:
    """The instance was booted with a weigher that is no longer installed. Regression: the whole batch failed, with the
    claims of the instances before it.
    """
    parties = ready("one", nodes="ab")
    [one] = parties.parties
    first, odd, last = one.place(asked(1), asked(1, weights={"gone": 2.0}), asked(1))
    assert first.claim is not None
    assert last.claim is not None
    assert odd.failure is not None
    assert "weights.gone" in str(odd.failure)
    assert not one.claim_table.edited


def test_settled_placings_are_left_alone() -> None:
    """Each step goes on where the one before ended."""
    parties = ready("one")
    [one] = parties.parties
    placings = one.place(asked(1, count=2))
    before = claimed(parties)
    one.placer.place(placings)
    assert claimed(parties) == before


# -- other schedulers ------------------------------------------------------------------------------


def test_scheduler_that_loses_a_node_takes_another() -> None:
    """It may take the same node again if there is room for both."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    first = one.place(asked(8, count=1))
    second = two.place(asked(8, count=1))
    assert sorted(map(str, [*nodes_of(first), *nodes_of(second)])) == ["a", "b"]
    assert claimed(parties, "ab") == {"a": 8, "b": 8}


def test_instance_that_always_loses_its_node_fails_after_a_number_of_tries() -> None:
    """Every loop has an end."""
    parties = ready("one", "two", nodes="a", vcpu=1_000)
    one, two = parties.parties
    one.connections[0].before_write = lambda: two.place(asked(1))
    [placing] = one.place(asked(1))
    assert placing.conflicts == MAX_TRIES_COUNT
    assert str(placing.failure) == f"lost its node to other schedulers {MAX_TRIES_COUNT} times"
    assert placing.claim is None
    assert claimed(parties, "a") == {"a": MAX_TRIES_COUNT}


def test_records_are_read_again_before_an_instance_fails() -> None:
    """Schedulers do not announce that they dropped a claim."""
    parties = ready("one", "two", nodes="a")
    one, two = parties.parties
    [theirs] = two.place(asked(8))
    one.claim_table.read_records(["a"])
    assert one.free("a") == 0
    two.placer.give_back([theirs])
    [mine] = one.place(asked(8))
    assert (mine.node, one.refreshes) == ("a", 1)
    [none] = one.place(asked(8))
    assert none.failure is not None
    assert one.refreshes == 2


def test_batch_reads_the_records_again_once_however_many_instances_fail() -> None:
    """That reads all records with claims."""
    parties = ready("one", nodes="ab", vcpu=2)
    [one] = parties.parties
    placings = one.place(asked(1, count=50))
    assert Counter(nodes_of(placings)) == {"a": 2, "b": 2, None: 46}
    assert one.refreshes == 1


def test_claims_of_a_dead_scheduler_expire() -> None:
    """A scheduler that waits for their room finds it without a message."""
    parties = ready("one", "two", nodes="a")
    one, two = parties.parties
    two.place(asked(8))
    [placing] = one.place(asked(8))
    assert placing.failure is not None
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S)
    [placing] = one.place(asked(8))
    assert placing.node == "a"


def test_room_that_is_given_back_is_free_for_all_schedulers() -> None:
    """A group gives back all its claims if one member finds no node."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    placings = one.place(asked(8, count=2))
    one.placer.give_back(placings)
    assert [(placing.claim, placing.node) for placing in placings] == [(None, None)] * 2
    assert claimed(parties, "ab") == {"a": 0, "b": 0}
    assert None not in nodes_of(two.place(asked(8, count=2)))


# -- servers --------------------------------------------------------------------------------------


def test_nodes_of_an_unresponsive_server_are_avoided() -> None:
    """Nodes whose records are on other servers are as good."""
    parties = ready("one", servers=2, nodes="abcdefghijkl")
    [one] = parties.parties
    parties.servers[0].stop()
    placings = one.place(asked(1, count=12))
    assert {parties.server_of(node or "").name for node in nodes_of(placings)} == {parties.servers[1].name}


def test_nodes_of_a_server_that_stops_answering_are_avoided() -> None:
    """The server told its time, but did not answer the write. Claims that it stored all the same are dropped later."""
    parties = ready("one", servers=2, nodes="abcdefghijkl")
    [one] = parties.parties
    one.connections[0].faults.append(Fault(None))
    placings = one.place(asked(1, count=12))
    assert {parties.server_of(node or "").name for node in nodes_of(placings)} == {parties.servers[1].name}
    one.claim_table.read_records("abcdefghijkl")
    one.claim_table.flush_all()
    assert sum(claimed(parties, "abcdefghijkl").values()) == 12


def test_failure_tells_that_no_server_answers() -> None:
    """The reason is not that no node fits."""
    parties = ready("one", nodes="ab")
    [one] = parties.parties
    parties.servers[0].stop()
    [placing] = one.place(asked(1))
    assert placing.failure is not None
    assert placing.failure.is_temporary
    assert str(placing.failure).startswith("no claim can be written: store m0 does not answer")


def test_node_with_a_full_record_is_avoided() -> None:
    """There is room on the node, and none in its record: that is no conflict, and the next node is as good."""
    parties = Parties("one", server=MemoryServer(max_value_bytes=1_000))
    parties.show(ChangingPartition(host("a", vcpu=80), host("b", vcpu=80)).view)
    [one] = parties.parties
    placings = [placing for _ in range(5) for placing in one.place(asked(1, different_host=["x" * 255]))]
    assert Counter(nodes_of(placings)) == {"a": 2, "b": 2, None: 1}
    assert [placing.conflicts for placing in placings] == [0] * 5


# -- constraints of a placing ----------------------------------------------------------------------


def test_instance_restricted_to_one_node_goes_there_or_fails() -> None:
    """The failure names the reason against the node."""
    parties = ready("one", nodes="abc", vcpu=4)
    [one] = parties.parties
    [there] = one.place(asked(1), only_row=one.fleet.rows["b"])
    assert there.node == "b"
    [none] = one.place(asked(4), only_row=one.fleet.rows["b"])
    assert str(none.failure) == "b does not pass resources; VCPU: 4 wanted, 3 free"
    [passed_over] = one.place(asked(1), only_row=one.fleet.rows["b"], avoided_rows={one.fleet.rows["b"]})
    assert str(passed_over.failure) == "b was tried before or is excluded"


def test_placing_that_avoids_unsure_records_waits_until_they_are_older() -> None:
    """The records were just created: claims may be missing from them."""
    parties = Parties("one")
    parties.show(ChangingPartition(host("a"), host("b")).view)
    [one] = parties.parties
    [placing] = one.place(asked(1), avoid_unsure=True)
    assert str(placing.failure) == (
        "claims may be missing from the records of all 2 nodes, which were created less than 10 s ago; try again"
    )
    [boot] = one.place(asked(1))
    assert boot.claim is not None
    parties.clock.advance(UNSURE_S)
    [placing] = one.place(asked(1), avoid_unsure=True)
    assert placing.claim is not None
    parties.clock.advance(1.0)
    parties.evict("a")
    one.claim_table.read_records(["a"])
    placings = one.place(asked(1, count=4), avoid_unsure=True)
    assert set(nodes_of(placings)) == {"b"}


def test_record_that_is_lost_during_a_write_is_unsure() -> None:
    """A placing that avoids unsure records learns of the loss by the write, and goes elsewhere."""
    parties = ready("one", nodes="ab")
    [one] = parties.parties
    parties.clock.advance(1.0)
    parties.evict("a")
    parties.evict("b")
    [placing] = one.place(asked(1), avoid_unsure=True)
    assert "claims may be missing" in str(placing.failure)
    assert placing.conflicts == 1, "after one loss the other records are read, too"


def test_excluded_instance_takes_no_room_on_its_own_node() -> None:
    """A migrating instance needs no room beside itself, and is no group member that stands in its own way."""
    parties = Parties("one")
    parties.show(ChangingPartition(host("a", used=8, instances={"vm": "web"}), host("b", used=8)).view)
    [one] = parties.parties
    original = Exclusion(0, "vm", {"VCPU": 6})
    [stays] = one.place(asked(7, instances=["vm"], group=ANTI), exclusions=(original,))
    assert (stays.node, stays.claim) == (None, None), "7 are asked for, and 6 of the 8 that are used are excluded"
    [stays] = one.place(asked(5, instances=["vm"], group=ANTI), exclusions=(original,))
    assert stays.node == "a"
    assert stays.claim is not None
    assert (stays.claim.resize, stays.claim.resources) == (True, {})
    assert one.free("a") == 0
    assert one.fleet.groups == {"web": {0: 1}}


def test_claim_of_a_resize_has_only_the_additional_resources() -> None:
    """The rest is in the node's usage already."""
    parties = Parties("one")
    parties.show(ChangingPartition(host("a", used=2, instances={"vm": None})).view)
    [one] = parties.parties
    [placing] = one.place(asked(5, instances=["vm"]), exclusions=(Exclusion(0, "vm", {"VCPU": 2}),))
    assert placing.claim is not None
    assert (placing.claim.resources, one.free("a")) == ({"VCPU": 3}, 3)


# -- affinity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(8))
def test_two_schedulers_begin_an_affinity_group_on_one_node(attempt: int) -> None:
    """Neither sees the other's claim when it chooses, and each would choose its own best node."""
    parties = ready(f"one{attempt}", f"two{attempt}")
    one, two = parties.parties
    placings: list[Placing] = []
    calls = iter(range(10))

    def begin_too() -> None:
        if next(calls) == attempt % 2:  # before the seed is written, or before the claim is
            placings.extend(two.place(asked(1, group=NEAR)))

    one.connections[0].before_write = begin_too
    placings += one.place(asked(1, group=NEAR))
    assert len(placings) == 2
    assert len(set(nodes_of(placings))) == 1
    assert None not in nodes_of(placings)


def test_affinity_group_that_loses_its_first_node_begins_on_another() -> None:
    """Another scheduler took that node, and no member is there: the seed must not keep the group from beginning."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    [probe] = one.place(asked(8))
    first = probe.node or ""
    one.placer.give_back([probe])
    calls = iter(range(10))

    def race() -> None:
        if next(calls) == 1:  # the seed is written, the claim is about to be
            two.place(asked(8), only_row=two.fleet.rows[first])

    one.connections[0].before_write = race
    [placing] = one.place(asked(8, group=NEAR))
    assert placing.failure is None
    assert {first, placing.node} == {"a", "b"}


def test_scheduler_whose_seed_was_replaced_drops_its_claim() -> None:
    """The other scheduler could not see its claim, and may have members elsewhere by now."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    calls = iter(range(10))

    def move() -> None:
        if next(calls) != 1:  # the seed is written, the claim is about to be
            return
        there = two.placer._affinity_seed.claim_or_get("web", "", CLAIM_TTL_S)
        elsewhere = "b" if there.node == "a" else "a"
        assert two.placer._affinity_seed.replace("web", there, elsewhere, CLAIM_TTL_S)
        expected.append(elsewhere)

    expected: list[str] = []
    one.connections[0].before_write = move
    [placing] = one.place(asked(1, group=NEAR))
    assert [placing.node] == expected
    one.claim_table.flush_all()
    assert claimed(parties, "ab") == {expected[0]: 1, "ab".replace(expected[0], ""): 0}


def test_record_of_the_seeds_node_is_read_before_the_seed_is_replaced() -> None:
    """A member of the group may have filled the node: then the group has begun, and the second scheduler does not know
    it.
    """
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    [first] = one.place(asked(8, group=NEAR))
    row = two.fleet.rows[first.node or ""]
    [second] = two.place(asked(1, group=NEAR), avoided_rows={row})
    assert second.node is None
    assert two.fleet.groups == {"web": {row: 1}}
    assert two.placer._affinity_seed.claim_or_get("web", "c", CLAIM_TTL_S).node == first.node, (
        "other schedulers still follow the seed to the first node"
    )


def test_member_that_is_claimed_while_the_seed_is_replaced_is_seen() -> None:
    """The scheduler that replaces a seed reads the claims on the old node once more."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    one.placer._affinity_seed.claim_or_get("web", "a", CLAIM_TTL_S)
    calls = iter(range(10))

    def claim_on_a() -> None:
        if next(calls) == 1:  # two read the seed and a's record, and is about to replace the seed
            taken = one.claim("a", 1, group="web")
            one.claim_table.add_claim("a", taken)
            one.claim_table.flush()

    two.connections[0].before_write = claim_on_a
    [placing] = two.place(asked(1, group=NEAR), avoided_rows={two.fleet.rows["a"]})
    assert placing.node is None
    assert claimed(parties, "ab") == {"a": 1, "b": 0}


def test_instance_restricted_to_one_node_does_not_follow_the_seed() -> None:
    """The seed is another node, which has no member: the group begins on the allowed node, or nowhere."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    one.placer._affinity_seed.claim_or_get("web", "a", CLAIM_TTL_S)
    [placing] = two.place(asked(1, group=NEAR), only_row=two.fleet.rows["b"])
    assert placing.node == "b"


def test_members_that_do_not_fit_on_the_groups_node_fail() -> None:
    """Hard affinity means that node or none."""
    parties = ready("one", "two", nodes="ab", vcpu=4)
    one, two = parties.parties
    first = one.place(asked(1, count=3, group=NEAR))
    second = two.place(asked(1, count=3, group=NEAR))
    assert len({node for node in [*nodes_of(first), *nodes_of(second)] if node}) == 1
    assert nodes_of(second).count(None) == 2


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.booleans()), max_size=8), st.integers(0, 5))
def test_affinity_group_is_on_one_node_in_any_order_of_placements(
    steps: list[tuple[int, int, bool]], seed: int
) -> None:
    """Three schedulers place members in any order; some do not fit on the group's node."""
    parties = ready(*(f"s{number}-{seed}" for number in range(3)), nodes="abc", vcpu=4)
    members: set[str] = set()
    for number, size, other in steps:
        for placing in parties.parties[number].place(asked(size, group=None if other else NEAR)):
            if placing.node is not None and not other:
                members.add(placing.node)
    assert len(members) <= 1


# -- reasons of a failure --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (NoHostFound(), "no node is known"),
        (NoHostFound((Remaining("all", 0), Remaining("status", 0))), "no node is known"),
        (
            NoHostFound(
                (Remaining("all", 1_200), Remaining("status", 1_100), Remaining("zone", 0), Remaining("group", 0))
            ),
            "the filter zone removed the last 1,100 of 1,200 nodes",
        ),
        (
            NoHostFound(
                (Remaining("all", 3), Remaining("resources", 0)), lacks=(Lack("VCPU", 9_000, 8), Lack("PGPU", 1, 0))
            ),
            (
                "the filter resources removed the last 3 of 3 nodes; VCPU: 9,000 wanted, at most 8 free on a node; "
                "PGPU: 1 wanted, at most 0 free on a node"
            ),
        ),
        (
            NoHostFound((Remaining("all", 3), Remaining("resources", 0))),
            ("the filter resources removed the last 3 of 3 nodes; there is enough of each, and nowhere of all at once"),
        ),
        (NoHostFound(reason="all is lost"), "all is lost"),
        (NoHostFound((Remaining("all", 1), Remaining("status", 0)), node="a"), "a does not pass status"),
        (NoHostFound((Remaining("all", 0), Remaining("status", 0)), node="a"), "a was tried before or is excluded"),
        (
            NoHostFound((Remaining("all", 0), Remaining("status", 0)), known=1),
            "no node is left to try: the only known node was tried before or excluded",
        ),
        (
            NoHostFound((Remaining("all", 0), Remaining("status", 0)), known=1_200),
            "no node is left to try: all 1,200 known nodes were tried before or excluded",
        ),
        (
            NoHostFound((Remaining("all", 1), Remaining("zone", 0))),
            "the filter zone removed the last 1 of 1 node",
        ),
    ],
)
def test_text_of_a_failure_names_the_filter_that_left_no_node(failure: NoHostFound, text: str) -> None:
    """The reader must know what to change."""
    assert str(failure) == text


def test_failure_of_a_forced_node_names_the_filter_that_refused_it() -> None:
    """Regression: of 52 nodes all but the forced one had room, and the text named ``force_nodes``."""
    parties = Parties("one")
    parties.show(ChangingPartition(host("a"), host("b", used=8)).view)
    [full, nowhere] = parties.parties[0].place(asked(1, force_nodes=["b"]), asked(1, force_nodes=["c"]))
    assert str(full.failure) == (
        "the filter resources removed the last 1 of 2 nodes; VCPU: 1 wanted, at most 0 free on a node"
    )
    assert str(nowhere.failure) == "no node c is known; 'nodestate view' lists them"
    assert nowhere.failure is not None
    assert nowhere.failure.remaining[1] == Remaining("force_nodes", 0)


def test_failure_without_any_node_says_so() -> None:
    """The scheduler was started first."""
    parties = Parties("one")
    parties.show(ChangingPartition().view)
    assert isinstance(parties.parties[0], Party)
    [placing] = parties.parties[0].place(asked(1))
    assert str(placing.failure) == "no node is known"
