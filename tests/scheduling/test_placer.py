"""The placer: nodes for many at once, among others that want the same, in bounded time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.scheduling.claims import CLOCK_S, UNSURE_S
from nodestate.scheduling.claims.placer import MAX_TRIES_COUNT
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.selection import Lack, Remaining
from nodestate.testing import Fault, MemoryServer
from tests.scheduling.claim_tables import CLAIM_TTL_S, Parties, Party
from tests.scheduling.fleets import Cell, asked, host

NEAR = {"name": "web", "policy": "affinity"}
ANTI = {"name": "web", "policy": "anti-affinity"}


def ready(*names: str, servers: int = 1, vcpu: int = 8, nodes: str = "abcdefgh", **more: Any) -> Parties:
    """Schedulers that know these nodes for long."""
    parties = Parties(*names, servers=servers)
    parties.show(Cell(*(host(name, vcpu=vcpu, **more) for name in nodes)).view)
    parties.clock.advance(UNSURE_S)
    return parties


def claimed(parties: Parties, nodes: str = "abcdefgh") -> dict[str, int]:
    """What is claimed, as the servers have it."""
    return {node: sum(claim.resources["VCPU"] for claim in parties.record(node).claims) for node in nodes}


def where(placings: list[Placing]) -> list[str | None]:
    return [placing.node for placing in placings]


# -- many at once ---------------------------------------------------------------------------------


def test_many_at_once_cost_one_round_trip_where_nobody_interferes() -> None:
    """Each counts for the next, without a look at the server in between."""
    parties = ready("one")
    [one] = parties.parties
    one.connections[0].calls.clear()
    placings = one.place(asked(2, count=32))
    assert Counter(where(placings)) == dict.fromkeys("abcdefgh", 4)
    assert claimed(parties) == dict.fromkeys("abcdefgh", 8)
    assert one.connections[0].calls == [("write", 8)]
    assert all(placing.settled and placing.failure is None and placing.conflicts == 0 for placing in placings)


def test_a_claim_says_all_that_its_agent_needs() -> None:
    """It may be another scheduler that finishes it."""
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
def test_none_is_refused_while_there_is_room_and_no_node_is_overfilled(sizes: list[int], seed: int) -> None:
    """Two schedulers, each knowing nothing of what the other does meanwhile."""
    parties = ready(f"one{seed}", f"two{seed}", nodes="abc", vcpu=6)
    placings = []
    for number, size in enumerate(sizes):
        placings += parties.parties[number % 2].place(asked(size))
    taken = claimed(parties, "abc")
    assert all(amount <= 6 for amount in taken.values())
    assert sum(taken.values()) == sum(size for size, placing in zip(sizes, placings, strict=True) if placing.claim)
    for size, placing in zip(sizes, placings, strict=True):
        if placing.failure is not None:
            assert all(6 - amount < size for amount in taken.values()), "at the end there is less room than then"


def test_what_does_not_fit_fails_by_itself() -> None:
    """The others of its batch go on, and it is told why."""
    parties = ready("one", nodes="ab", vcpu=4)
    [one] = parties.parties
    large, small = one.place(asked(9, instances=["large"]), asked(1, instances=["small"]))
    assert (large.node, large.claim, small.failure) == (None, None, None)
    assert str(large.failure) == (
        "no node passes resources: of 2, 2 were left before it; VCPU: 9 wanted, at most 4 free on a node"
    )
    assert sum(claimed(parties, "ab").values()) == 1


def test_a_request_that_can_t_be_weighed_fails_by_itself() -> None:
    """It was booted with a weigher that is not installed any more. It took the whole batch with it, and the claims of
    those before it.
    """
    parties = ready("one", nodes="ab")
    [one] = parties.parties
    first, odd, last = one.place(asked(1), asked(1, weights={"gone": 2.0}), asked(1))
    assert first.claim is not None
    assert last.claim is not None
    assert odd.failure is not None
    assert "weights.gone" in str(odd.failure)
    assert not one.claim_table.edited


def test_what_is_settled_already_is_left_alone() -> None:
    """A step begins where the one before ended."""
    parties = ready("one")
    [one] = parties.parties
    placings = one.place(asked(1, count=2))
    before = claimed(parties)
    one.placer.place(placings)
    assert claimed(parties) == before


# -- others ---------------------------------------------------------------------------------------


def test_who_is_beaten_looks_and_takes_another() -> None:
    """Or the same again, where there is room for both."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    first = one.place(asked(8, count=1))
    second = two.place(asked(8, count=1))
    assert sorted(map(str, [*where(first), *where(second)])) == ["a", "b"]
    assert claimed(parties, "ab") == {"a": 8, "b": 8}


def test_who_is_always_beaten_gives_up_and_says_so() -> None:
    """Every loop has an end."""
    parties = ready("one", "two", nodes="a", vcpu=1_000)
    one, two = parties.parties
    one.connections[0].before_write = lambda: two.place(asked(1))
    [placing] = one.place(asked(1))
    assert placing.conflicts == MAX_TRIES_COUNT
    assert str(placing.failure) == f"lost its node to other schedulers {MAX_TRIES_COUNT} times"
    assert placing.claim is None
    assert claimed(parties, "a") == {"a": MAX_TRIES_COUNT}


def test_before_a_node_is_refused_for_a_claim_it_is_looked_at_again() -> None:
    """Nobody tells when a claim of somebody else goes."""
    parties = ready("one", "two", nodes="a")
    one, two = parties.parties
    [theirs] = two.place(asked(8))
    one.claim_table.read_records(["a"])
    assert one.free("a") == 0
    two.placer.give_back([theirs])
    [mine] = one.place(asked(8))
    assert (mine.node, one.looked_again) == ("a", 1)
    [none] = one.place(asked(8))
    assert none.failure is not None
    assert one.looked_again == 2


def test_a_batch_looks_again_once_however_many_fail() -> None:
    """It reads all records that have claims."""
    parties = ready("one", nodes="ab", vcpu=2)
    [one] = parties.parties
    placings = one.place(asked(1, count=50))
    assert Counter(where(placings)) == {"a": 2, "b": 2, None: 46}
    assert one.looked_again == 1


def test_claims_of_the_dead_are_over_in_time() -> None:
    """And who waits for one finds the room, without being told."""
    parties = ready("one", "two", nodes="a")
    one, two = parties.parties
    two.place(asked(8))
    [placing] = one.place(asked(8))
    assert placing.failure is not None
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S)
    [placing] = one.place(asked(8))
    assert placing.node == "a"


def test_what_is_given_back_is_free_for_all() -> None:
    """All of a group, where one of it found none."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    placings = one.place(asked(8, count=2))
    one.placer.give_back(placings)
    assert [(placing.claim, placing.node) for placing in placings] == [(None, None)] * 2
    assert claimed(parties, "ab") == {"a": 0, "b": 0}
    assert None not in where(two.place(asked(8, count=2)))


# -- servers --------------------------------------------------------------------------------------


def test_nodes_of_a_silent_server_are_passed_over() -> None:
    """What lives elsewhere is as good."""
    parties = ready("one", servers=2, nodes="abcdefghijkl")
    [one] = parties.parties
    parties.servers[0].stop()
    placings = one.place(asked(1, count=12))
    assert {parties.server_of(node or "").name for node in where(placings)} == {parties.servers[1].name}


def test_nodes_of_a_server_that_falls_silent_in_the_midst_are_passed_over() -> None:
    """Its clock was asked, its answer to the write did not come. What it wrote all the same is dropped later."""
    parties = ready("one", servers=2, nodes="abcdefghijkl")
    [one] = parties.parties
    one.connections[0].faults.append(Fault(None))
    placings = one.place(asked(1, count=12))
    assert {parties.server_of(node or "").name for node in where(placings)} == {parties.servers[1].name}
    one.claim_table.read_records("abcdefghijkl")
    one.claim_table.flush_all()
    assert sum(claimed(parties, "abcdefghijkl").values()) == 12


def test_who_finds_all_servers_silent_is_told_so() -> None:
    """Not that no node fits."""
    parties = ready("one", nodes="ab")
    [one] = parties.parties
    parties.servers[0].stop()
    [placing] = one.place(asked(1))
    assert str(placing.failure).startswith("no claim can be written: store m0 does not answer")


def test_a_record_that_takes_no_more_is_passed_over() -> None:
    """There is room on the node, and none in its item; that is no conflict, and the next node is as good."""
    parties = Parties("one", server=MemoryServer(max_value_bytes=1_000))
    parties.show(Cell(host("a", vcpu=80), host("b", vcpu=80)).view)
    [one] = parties.parties
    placings = [placing for _ in range(5) for placing in one.place(asked(1, different_host=["x" * 255]))]
    assert Counter(where(placings)) == {"a": 2, "b": 2, None: 1}
    assert [placing.conflicts for placing in placings] == [0] * 5


# -- only, sure, avoid, lifts ---------------------------------------------------------------------


def test_who_may_go_to_one_node_only_goes_there_or_nowhere() -> None:
    """And is told what is against it."""
    parties = ready("one", nodes="abc", vcpu=4)
    [one] = parties.parties
    [there] = one.place(asked(1), only_row=one.fleet.rows["b"])
    assert there.node == "b"
    [none] = one.place(asked(4), only_row=one.fleet.rows["b"])
    assert str(none.failure) == "b does not pass resources; VCPU: 4 wanted, 3 free"
    [passed_over] = one.place(asked(1), only_row=one.fleet.rows["b"], avoided_rows={one.fleet.rows["b"]})
    assert str(passed_over.failure) == "b is passed over"


def test_who_must_be_sure_waits_for_records_that_are() -> None:
    """A record was begun just now: claims may be missing from it."""
    parties = Parties("one")
    parties.show(Cell(host("a"), host("b")).view)
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
    assert set(where(placings)) == {"b"}


def test_a_record_that_is_lost_in_the_midst_is_not_sure() -> None:
    """Who must be sure finds it out by the write, and goes elsewhere."""
    parties = ready("one", nodes="ab")
    [one] = parties.parties
    parties.clock.advance(1.0)
    parties.evict("a")
    parties.evict("b")
    [placing] = one.place(asked(1), avoid_unsure=True)
    assert "claims may be missing" in str(placing.failure)
    assert placing.conflicts == 1, "after one loss the others are looked at, too"


def test_an_instance_that_moves_is_thought_away_from_where_it_is() -> None:
    """It needs no room beside itself, and is no member of its group that stands in its own way."""
    parties = Parties("one")
    parties.show(Cell(host("a", used=8, instances={"vm": "web"}), host("b", used=8)).view)
    [one] = parties.parties
    lift = Exclusion(0, "vm", {"VCPU": 6})
    [stays] = one.place(asked(7, instances=["vm"], group=ANTI), exclusions=(lift,))
    assert (stays.node, stays.claim) == (None, None), "7 where 6 are lifted of 8 that are used"
    [stays] = one.place(asked(5, instances=["vm"], group=ANTI), exclusions=(lift,))
    assert stays.node == "a"
    assert stays.claim is not None
    assert (stays.claim.resize, stays.claim.resources) == (True, {})
    assert one.free("a") == 0
    assert one.fleet.groups == {"web": {0: 1}}


def test_what_a_resize_takes_is_what_it_has_not_yet() -> None:
    """The rest is in the node's usage."""
    parties = Parties("one")
    parties.show(Cell(host("a", used=2, instances={"vm": None})).view)
    [one] = parties.parties
    [placing] = one.place(asked(5, instances=["vm"]), exclusions=(Exclusion(0, "vm", {"VCPU": 2}),))
    assert placing.claim is not None
    assert (placing.claim.resources, one.free("a")) == ({"VCPU": 3}, 3)


# -- affinity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(8))
def test_two_that_begin_an_affinity_group_begin_it_on_one_node(attempt: int) -> None:
    """Neither sees the other's claim when it chooses; each would choose the node that it likes best."""
    parties = ready(f"one{attempt}", f"two{attempt}")
    one, two = parties.parties
    placings: list[Placing] = []
    calls = iter(range(10))

    def begin_too() -> None:
        if next(calls) == attempt % 2:  # before it is agreed where to, or before the claim
            placings.extend(two.place(asked(1, group=NEAR)))

    one.connections[0].before_write = begin_too
    placings += one.place(asked(1, group=NEAR))
    assert len(placings) == 2
    assert len(set(where(placings))) == 1
    assert None not in where(placings)


def test_an_affinity_group_that_lost_its_first_node_begins_on_another() -> None:
    """Somebody else was faster there, and nobody of the group is there: what was agreed must not keep it from beginning."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    [probe] = one.place(asked(8))
    first = probe.node or ""
    one.placer.give_back([probe])
    calls = iter(range(10))

    def race() -> None:
        if next(calls) == 1:  # the anchor is set, the claim is about to be written
            two.place(asked(8), only_row=two.fleet.rows[first])

    one.connections[0].before_write = race
    [placing] = one.place(asked(8, group=NEAR))
    assert placing.failure is None
    assert {first, placing.node} == {"a", "b"}


def test_who_began_a_group_and_finds_it_moved_meanwhile_steps_back() -> None:
    """The other could not see its claim, and may have members elsewhere by now."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    calls = iter(range(10))

    def move() -> None:
        if next(calls) != 1:  # the anchor is set, the claim is about to be written
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


def test_an_agreed_node_that_can_t_take_it_is_read_about_before_the_group_begins_elsewhere() -> None:
    """A member of the group may have filled it: it has begun, and not to the knowledge of who comes second."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    [first] = one.place(asked(8, group=NEAR))
    row = two.fleet.rows[first.node or ""]
    [second] = two.place(asked(1, group=NEAR), avoided_rows={row})
    assert second.node is None
    assert two.fleet.groups == {"web": {row: 1}}
    assert two.placer._affinity_seed.claim_or_get("web", "c", CLAIM_TTL_S).node == first.node, (
        "others still follow to where it is"
    )


def test_a_member_that_is_claimed_while_the_group_is_moved_is_seen() -> None:
    """Who moves the beginning of a group looks once more at where it was to be."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    one.placer._affinity_seed.claim_or_get("web", "a", CLAIM_TTL_S)
    calls = iter(range(10))

    def claim_on_a() -> None:
        if next(calls) == 1:  # two agreed to a, looked at it, and is about to move away
            taken = one.claim("a", 1, group="web")
            one.claim_table.add_claim("a", taken)
            one.claim_table.flush()

    two.connections[0].before_write = claim_on_a
    [placing] = two.place(asked(1, group=NEAR), avoided_rows={two.fleet.rows["a"]})
    assert placing.node is None
    assert claimed(parties, "ab") == {"a": 1, "b": 0}


def test_who_may_go_to_one_node_only_does_not_follow_its_group_to_another() -> None:
    """It was agreed elsewhere, and nobody is there yet: it begins where it may, or nowhere."""
    parties = ready("one", "two", nodes="ab")
    one, two = parties.parties
    one.placer._affinity_seed.claim_or_get("web", "a", CLAIM_TTL_S)
    [placing] = two.place(asked(1, group=NEAR), only_row=two.fleet.rows["b"])
    assert placing.node == "b"


def test_members_that_do_not_fit_where_the_group_began_go_nowhere() -> None:
    """Hard affinity: on that node or none."""
    parties = ready("one", "two", nodes="ab", vcpu=4)
    one, two = parties.parties
    first = one.place(asked(1, count=3, group=NEAR))
    second = two.place(asked(1, count=3, group=NEAR))
    assert len({node for node in [*where(first), *where(second)] if node}) == 1
    assert where(second).count(None) == 2


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.booleans()), max_size=8), st.integers(0, 5))
def test_an_affinity_group_is_on_one_node_whoever_places_whatever(
    steps: list[tuple[int, int, bool]], seed: int
) -> None:
    """Three schedulers in any order; some of its members do not fit where it is."""
    parties = ready(*(f"s{number}-{seed}" for number in range(3)), nodes="abc", vcpu=4)
    members: set[str] = set()
    for number, size, other in steps:
        for placing in parties.parties[number].place(asked(size, group=None if other else NEAR)):
            if placing.node is not None and not other:
                members.add(placing.node)
    assert len(members) <= 1


# -- why ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (NoHostFound(), "no node is known"),
        (NoHostFound((Remaining("all", 0), Remaining("status", 0))), "no node is known"),
        (
            NoHostFound(
                (Remaining("all", 1_200), Remaining("status", 1_100), Remaining("zone", 0), Remaining("group", 0))
            ),
            "no node passes zone: of 1,200, 1,100 were left before it",
        ),
        (
            NoHostFound(
                (Remaining("all", 3), Remaining("resources", 0)), lacks=(Lack("VCPU", 9_000, 8), Lack("PGPU", 1, 0))
            ),
            (
                "no node passes resources: of 3, 3 were left before it; VCPU: 9,000 wanted, at most 8 free on a node; "
                "PGPU: 1 wanted, at most 0 free on a node"
            ),
        ),
        (
            NoHostFound((Remaining("all", 3), Remaining("resources", 0))),
            "no node passes resources: of 3, 3 were left before it; there is enough of each, and nowhere of all at once",
        ),
        (NoHostFound(reason="all is lost"), "all is lost"),
        (NoHostFound((Remaining("all", 1), Remaining("status", 0)), node="a"), "a does not pass status"),
        (NoHostFound((Remaining("all", 0), Remaining("status", 0)), node="a"), "a is passed over"),
    ],
)
def test_a_refusal_says_which_filter_left_none(failure: NoHostFound, text: str) -> None:
    """Who reads it must know what to change."""
    assert str(failure) == text


def test_what_refuses_a_forced_node_is_told_and_not_that_it_was_forced() -> None:
    """Regression: of 52 nodes, all but the forced one had room, and ``force_nodes`` was named."""
    parties = Parties("one")
    parties.show(Cell(host("a"), host("b", used=8)).view)
    [full, nowhere] = parties.parties[0].place(asked(1, force_nodes=["b"]), asked(1, force_nodes=["c"]))
    assert str(full.failure) == (
        "no node passes resources: of 2, 1 was left before it; VCPU: 1 wanted, at most 0 free on a node"
    )
    assert str(nowhere.failure) == "no node c is known"
    assert nowhere.failure is not None
    assert nowhere.failure.remaining[1] == Remaining("force_nodes", 0)


def test_a_scheduler_without_nodes_says_so() -> None:
    """It came up first."""
    parties = Parties("one")
    parties.show(Cell().view)
    assert isinstance(parties.parties[0], Party)
    [placing] = parties.parties[0].place(asked(1))
    assert str(placing.failure) == "no node is known"
