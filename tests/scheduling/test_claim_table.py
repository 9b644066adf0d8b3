"""The ledger: of schedulers that take the same room one gets it (I8), what is lost is seen, and nothing stays taken for long."""

from __future__ import annotations

import pytest

from nodestate.errors import StoreUnavailableError
from nodestate.model import Receipt, Version
from nodestate.ports import WriteStatus
from nodestate.scheduling.claims import CLOCK_S, MAX_CLAIMS_COUNT, REASSERT_S, UNSURE_S, Claim
from nodestate.scheduling.claims.claim_table import MAX_FLUSHES_COUNT
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.scheduling.claim_tables import CLAIM_TTL_S, LOSSES, Connection, Loss, Parties, Party
from tests.scheduling.fleets import Cell, host

LOST = pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
EFFECTS = {"nothing done": Fault(0), "all done": Fault(None)}


def begun(*names: str, servers: int = 1, vcpu: int = 8, nodes: str = "a") -> Parties:
    """Schedulers that all know these nodes, whose records are old enough to be sure."""
    parties = Parties(*names, servers=servers)
    parties.show(Cell(*(host(name, vcpu=vcpu) for name in nodes)).view)
    parties.clock.advance(UNSURE_S)
    return parties


def taken(outcome: object) -> Claim:
    assert isinstance(outcome, Claim), outcome
    return outcome


# -- taking ---------------------------------------------------------------------------------------


def test_what_one_claims_others_see_when_they_read() -> None:
    """And the claimant at once, before it is written."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = one.claim("a", 3, group="web")
    one.claim_table.add_claim("a", claim)
    assert (one.free("a"), one.fleet.groups, two.free("a")) == (5, {"web": {0: 1}}, 8)
    assert one.claim_table.flush() == {"a": WriteStatus.STORED}
    two.claim_table.read_records(["a"])
    assert (two.free("a"), two.fleet.groups, two.fleet.instances.rows_with(claim.instance)) == (5, {"web": {0: 1}}, [0])
    assert parties.record("a").claims == (claim,)
    assert (one.own(), two.own()) == ({("a", claim.id)}, set())


def test_of_two_that_take_the_last_room_one_gets_it_and_the_other_sees_why() -> None:
    """I8: the second writes nothing, and does not have to ask for what to do next."""
    parties = begun("one", "two")
    one, two = parties.parties
    first = taken(one.take("a", 5))
    assert two.take("a", 5) is WriteStatus.CONFLICT
    assert (two.free("a"), two.own(), two.claim_table.edited) == (3, set(), False)
    second = taken(two.take("a", 3))
    assert parties.ids("a") == [first.id, second.id]
    assert (one.claim_table.stats.conflicts, two.claim_table.stats.conflicts) == (0, 1)


def test_a_conflict_over_a_node_with_room_for_both_is_one_more_try() -> None:
    """Compare-and-swap knows nothing of room, so also the second write of two that fit is lost, once."""
    parties = begun("one", "two")
    one, two = parties.parties
    taken(one.take("a", 2))
    assert two.take("a", 2) is WriteStatus.CONFLICT
    taken(two.take("a", 2))
    assert (two.free("a"), len(parties.ids("a"))) == (4, 2)


def test_what_does_not_fit_by_what_is_known_is_not_even_sent() -> None:
    """Several of one batch may choose the same room, each by itself."""
    parties = begun("one")
    [one] = parties.parties
    one.connections[0].calls.clear()
    assert one.take("a", 9) is WriteStatus.CONFLICT
    assert one.connections[0].calls == []
    assert (one.free("a"), parties.ids("a")) == (8, [])


def test_a_class_that_a_node_does_not_have_can_t_be_claimed_there() -> None:
    """0 of it is free, and 0 is not less than 0."""
    parties = begun("one")
    [one] = parties.parties
    assert one.take("a", resources={"VCPU": 1, "CUSTOM_GPU": 1}) is WriteStatus.CONFLICT


def test_a_batch_costs_one_round_trip_to_each_server() -> None:
    """The network is batched (house rule 14)."""
    parties = begun("one", servers=2, nodes="abcdefgh")
    [one] = parties.parties
    for connection in one.connections:
        connection.calls.clear()
    for node in "abcdefgh":
        one.claim_table.add_claim(node, one.claim(node))
    assert set(one.claim_table.flush().values()) == {WriteStatus.STORED}
    here = [sum(parties.server_of(node) is server for node in "abcdefgh") for server in parties.servers]
    assert [connection.calls for connection in one.connections] == [[("write", count)] for count in here]
    assert min(here) > 0


def test_the_bound_of_an_anti_affinity_group_holds_against_others() -> None:
    """There is room, but the group has its member on the node by now."""
    parties = begun("one", "two", "three")
    one, two, three = parties.parties
    policy = {"group": "web", "hints": {"group_policy": "anti-affinity", "max_per_node": 2}}
    taken(one.take("a", **policy))
    assert two.take("a", **policy) is WriteStatus.CONFLICT
    taken(two.take("a", **policy))
    assert three.take("a", **policy) is WriteStatus.CONFLICT
    assert three.take("a", **policy) is WriteStatus.CONFLICT
    taken(three.take("a", group="web"))


def test_a_claim_is_extended_by_taking_it_again() -> None:
    """The same id with another deadline takes no more room."""
    parties = begun("one")
    [one] = parties.parties
    claim = taken(one.take("a", 8))
    parties.clock.advance(CLAIM_TTL_S - 1)
    longer = one.claim("a", 8, id=claim.id)
    one.claim_table.add_claim("a", longer)
    assert one.claim_table.flush() == {"a": WriteStatus.STORED}
    parties.clock.advance(CLAIM_TTL_S - 1)
    one.claim_table.expire()
    assert (one.free("a"), one.own(), parties.record("a").claims) == (0, {("a", claim.id)}, (longer,))


def test_a_record_takes_no_more_than_so_many_claims_and_says_so() -> None:
    """Told from a conflict, as who tries again would try for ever."""
    parties = begun("one", vcpu=2 * MAX_CLAIMS_COUNT)
    [one] = parties.parties
    for _ in range(MAX_CLAIMS_COUNT):
        one.claim_table.add_claim("a", one.claim("a"))
    assert one.claim_table.flush() == {"a": WriteStatus.STORED}
    assert one.take("a") is WriteStatus.FULL
    assert (len(parties.ids("a")), one.free("a")) == (MAX_CLAIMS_COUNT, MAX_CLAIMS_COUNT)
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S)
    taken(one.take("a"))


def test_a_record_that_would_not_fit_an_item_hurts_no_other_node() -> None:
    """One claim too large for the server must not fail a batch that has it."""
    clock = ManualClock()
    parties = Parties("one", server=MemoryServer(clock=clock, max_value_bytes=4_000))
    parties.show(Cell(host("a"), host("b")).view)
    [one] = parties.parties
    large, small = one.claim("a", hints={"same_host": ["i" * 200] * 20}), one.claim("b")
    one.claim_table.add_claim("a", large)
    one.claim_table.add_claim("b", small)
    assert one.claim_table.flush() == {"a": WriteStatus.FULL, "b": WriteStatus.STORED}
    assert (parties.ids("a"), parties.ids("b")) == ([], [small.id])
    assert (one.free("a"), one.own()) == (8, {("b", small.id)})


def test_a_server_without_memory_is_told_from_one_where_others_are_faster() -> None:
    """Under -M a claim is refused, and what was there stays."""
    clock = ManualClock()
    parties = Parties("one", server=MemoryServer(clock=clock, max_bytes=700, no_evict=True))
    parties.show(Cell(host("a")).view)
    [one] = parties.parties
    claim = taken(one.take("a"))
    assert one.take("a", hints={"same_host": ["i" * 200] * 3}) is WriteStatus.FULL
    assert (parties.ids("a"), one.free("a")) == ([claim.id], 7)


# -- giving back ----------------------------------------------------------------------------------


def test_what_is_given_back_is_given_back_whoever_is_faster() -> None:
    """What was to be taken is decided anew after a conflict; what was to be dropped is not wanted in any case."""
    parties = begun("one", "two")
    one, two = parties.parties
    kept, dropped = taken(one.take("a", 2)), taken(one.take("a", 2))
    two.claim_table.read_records(["a"])
    theirs = taken(two.take("a", 1))
    one.claim_table.drop_claim("a", dropped.id)
    new = one.claim("a", 1)
    one.claim_table.add_claim("a", new)
    assert one.claim_table.flush() == {"a": WriteStatus.CONFLICT}
    one.claim_table.flush_all()
    assert sorted(parties.ids("a")) == sorted([kept.id, theirs.id])
    assert (one.free("a"), one.own(), one.claim_table.edited) == (5, {("a", kept.id)}, False)


def test_a_claim_that_is_dropped_before_it_was_written_never_is() -> None:
    """A choice that was given up in the same batch."""
    parties = begun("one")
    [one] = parties.parties
    claim = one.claim("a", 5)
    one.claim_table.add_claim("a", claim)
    one.claim_table.drop_claim("a", claim.id)
    assert one.free("a") == 8
    one.claim_table.flush_all()
    assert (parties.ids("a"), one.own()) == ([], set())


def test_giving_back_gives_up_where_others_are_always_faster() -> None:
    """Every loop has an end: the claim is over at its deadline anyway."""
    parties = begun("one", "two", vcpu=100)
    one, two = parties.parties
    claim = taken(one.take("a"))
    two.claim_table.read_records(["a"])
    one.connections[0].before_write = lambda: taken(two.take("a"))
    one.claim_table.drop_claim("a", claim.id)
    one.claim_table.flush_all()
    assert len(two.own()) == one.claim_table.stats.conflicts == MAX_FLUSHES_COUNT
    assert one.claim_table.edited
    one.connections[0].before_write = lambda: None
    one.claim_table.flush_all()
    assert claim.id not in parties.ids("a")


# -- time -----------------------------------------------------------------------------------------


def test_a_claim_is_over_at_its_deadline_for_everybody() -> None:
    """Its scheduler may be dead. The record is cleared with the next write."""
    parties = begun("one", "two")
    one, two = parties.parties
    taken(one.take("a", 8))
    two.claim_table.read_records(["a"])
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S - 0.1)
    two.claim_table.expire()
    assert two.free("a") == 0
    parties.clock.advance(0.1)
    for party in (one, two):
        party.claim_table.expire()
        assert (party.free("a"), party.own()) == (8, set())
    claim = taken(two.take("a", 8))
    assert parties.ids("a") == [claim.id]


def test_a_server_that_does_not_answer_stops_no_other_claims_from_being_over() -> None:
    """Each server has its own clock, and one of them may be silent."""
    parties = begun("one", servers=2, nodes="abcdefgh")
    [one] = parties.parties
    near, far = (next(n for n in "abcdefgh" if parties.server_of(n) is server) for server in parties.servers)
    taken(one.take(near, 8, seconds=CLAIM_TTL_S - 5.0))
    taken(one.take(far, 8))
    parties.server_of(near).stop()
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S)
    one.claim_table.expire()
    assert (one.free(near), one.free(far)) == (0, 8)
    parties.server_of(near).start()
    one.claim_table.expire()
    assert one.free(near) == 8


def test_what_is_looked_after_for_a_day_costs_no_more_memory_than_at_first() -> None:
    """A reservation is held for 24 hours, and read every few seconds."""
    parties = begun("one")
    [one] = parties.parties
    taken(one.take("a", seconds=24 * 3600.0))
    for _ in range(50):
        parties.clock.advance(REASSERT_S)
        one.claim_table.reassert_own_claims()
        one.claim_table.flush_all()
    assert [len(due) for due in one.claim_table._deadlines._heaps.values()] == [1]


# -- views ----------------------------------------------------------------------------------------


def test_a_claim_that_became_an_allocation_counts_once() -> None:
    """First as a claim, then in the node's usage; and the record is cleared with the next write."""
    cell = Cell(host("a"))
    parties = Parties("one")
    parties.show(cell.view)
    [one] = parties.parties
    claim = taken(one.take("a", 3, group="web"))
    cell.change(host("a", 2, used=3, instances={claim.instance: "web"}))
    parties.show(cell.view)
    assert (one.free("a"), one.fleet.groups, one.fleet.instances.rows_with(claim.instance)) == (5, {"web": {0: 1}}, [0])
    after = taken(one.take("a", 5))
    assert parties.ids("a") == [after.id]
    assert parties.record("a").seen == Version(1, 2)


def test_who_has_not_seen_what_a_claim_became_must_not_claim_on_the_node() -> None:
    """The claim is gone from the record, and the allocation is not in the older view: for it the room would look free (I8)."""
    cell = Cell(host("a"))
    parties = Parties("one", "two")
    parties.show(cell.view)
    one, two = parties.parties
    claim = taken(one.take("a", 6))
    cell.change(host("a", 2, used=6, instances={claim.instance: None}))
    one.look(cell.view)
    small = taken(one.take("a", 1))
    assert parties.ids("a") == [small.id], "the first was dropped"
    two.claim_table.read_records(["a"])
    assert (two.free("a"), two.usable("a")) == (7, False)
    assert two.take("a", 6) is WriteStatus.CONFLICT
    assert two.claim_table.receipts_to_await() == [Receipt("a", Version(1, 2))]
    two.look(cell.view)
    assert (two.free("a"), two.usable("a"), two.claim_table.receipts_to_await()) == (1, True, [])
    taken(two.take("a", 1))


def test_who_meets_such_a_record_in_the_midst_of_a_write_does_not_claim_on_it_either() -> None:
    """He learns of it by the conflict."""
    cell = Cell(host("a"))
    parties = Parties("one", "two")
    parties.show(cell.view)
    one, two = parties.parties
    claim = taken(one.take("a", 6))
    two.claim_table.read_records(["a"])
    cell.change(host("a", 2, used=6, instances={claim.instance: None}))
    one.look(cell.view)
    taken(one.take("a", 1))
    assert two.take("a", 2) is WriteStatus.CONFLICT
    assert two.take("a", 2) is WriteStatus.CONFLICT
    assert not two.usable("a")


def test_a_node_that_refused_by_a_newer_state_is_not_claimed_by_an_older() -> None:
    """The agent knows of something that no view shows yet; what is in the same batch must not go there either."""
    parties = begun("one")
    [one] = parties.parties
    claim = taken(one.take("a"))
    one.claim_table.drop_claim("a", claim.id, Version(1, 4))
    assert not one.usable("a")
    assert one.take("a") is WriteStatus.CONFLICT
    one.claim_table.flush_all()
    assert (parties.ids("a"), parties.record("a").seen) == ([], Version(1, 4))


def test_what_an_instance_had_is_free_when_it_ended() -> None:
    """Its claim is in the record yet, and must not count again."""
    cell = Cell(host("a"))
    parties = Parties("one")
    parties.show(cell.view)
    [one] = parties.parties
    claim = taken(one.take("a", 6))
    cell.change(host("a", 2, used=6, instances={claim.instance: None}))
    parties.show(cell.view)
    cell.change(host("a", 3))
    parties.show(cell.view)
    assert (one.free("a"), one.fleet.instances.rows_with(claim.instance)) == (8, [])
    taken(one.take("a", 8))


def test_what_a_resize_takes_counts_beside_the_allocation_until_it_is_dropped() -> None:
    """The node shows the instance before and after; only who resized knows when it is done."""
    cell = Cell(host("a", used=2, instances={"vm": None}))
    parties = Parties("one", "two")
    parties.show(cell.view)
    one, two = parties.parties
    claim = taken(one.take("a", 4, instance="vm", resize=True))
    two.claim_table.read_records(["a"])
    assert (two.free("a"), two.fleet.instances.rows_with("vm")) == (2, [0])
    cell.change(host("a", 2, used=6, instances={"vm": None}))
    parties.show(cell.view)
    one.claim_table.drop_claim("a", claim.id, Version(1, 2))
    one.claim_table.flush_all()
    two.claim_table.read_records(["a"])
    assert (one.free("a"), two.free("a"), parties.ids("a")) == (2, 2, [])


def test_claims_on_a_node_that_no_view_shows_yet_lie_over_it_when_one_does() -> None:
    """Another scheduler's view is newer."""
    parties = Parties("one", "two")
    one, two = parties.parties
    cell = Cell(host("a"))
    one.look(cell.view)
    taken(one.take("a", 6))
    two.claim_table.read_records(["a"])
    two.look(cell.view)
    assert two.free("a") == 2
    assert two.take("b") is WriteStatus.CONFLICT, "no view shows it, so nobody knows what it has"


# -- loss -----------------------------------------------------------------------------------------


@LOST
def test_own_claims_that_went_with_a_record_are_put_back(lose: Loss) -> None:
    """By their holder, as soon as it looks: memcached may lose any item at any time."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    lose(parties, "a")
    two.claim_table.read_records(["a"])
    assert (two.free("a"), two.claim_table.unsure_nodes()) == (8, ["a"])
    one.claim_table.reassert_own_claims()
    assert one.free("a") == 3
    one.claim_table.flush_all()
    assert parties.record("a").claims == (claim,)
    two.claim_table.read_records(["a"])
    assert two.free("a") == 3
    assert (one.claim_table.stats.lost, one.claim_table.stats.put_back) == (1, 1)


@LOST
def test_a_loss_that_is_met_in_the_midst_of_a_write_is_seen(lose: Loss) -> None:
    """The write finds nothing to compare with; it is not carried out on what the record was."""
    parties = begun("one")
    [one] = parties.parties
    claim = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    lose(parties, "a")
    assert one.take("a", 1) is WriteStatus.CONFLICT
    assert one.claim_table.unsure_nodes() == ["a"]
    one.claim_table.flush_all()
    assert parties.ids("a") == [claim.id]


def test_a_loss_is_seen_whatever_the_clock_of_who_began_anew() -> None:
    """Clients know the server's clock to the second: a record begun after another may say that it was before."""
    parties = Parties("one")
    [one] = parties.parties
    two = Party("two", parties.servers, parties.clock, ahead_s=-0.9)
    cell = Cell(host("a"))
    one.look(cell.view)
    claim = taken(one.take("a", 5))
    parties.clock.advance(0.5)
    parties.evict("a")
    two.look(cell.view)
    assert parties.record("a").born < one.claim_table.own.on("a")[claim.id].record_born
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert parties.ids("a") == [claim.id]


@LOST
def test_nothing_is_promised_on_a_record_from_which_claims_may_be_missing(lose: Loss) -> None:
    """A reservation asks no agent, so it passes over such a node for as long as holders need to put back what they hold; a
    boot goes on, as the agent knows.
    """
    parties = begun("one", "two")
    one, two = parties.parties
    held = taken(one.take("a", 5, avoid_unsure=True))
    parties.clock.advance(1.0)
    lose(parties, "a")
    two.claim_table.read_records(["a"])
    assert two.take("a", 5, avoid_unsure=True) is WriteStatus.CONFLICT
    parties.clock.advance(REASSERT_S)
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    parties.clock.advance(UNSURE_S)
    assert two.take("a", 5, avoid_unsure=True) is WriteStatus.CONFLICT
    taken(two.take("a", 3, avoid_unsure=True))
    assert held.id in parties.ids("a")
    assert two.claim_table.unsure_nodes() == []


def test_nothing_is_promised_on_a_record_that_the_write_itself_begins() -> None:
    """The server was silent when the node was read about first."""
    parties = Parties("one")
    [one] = parties.parties
    parties.servers[0].stop()
    one.look(Cell(host("a")).view)
    parties.servers[0].start()
    assert one.take("a", avoid_unsure=True) is WriteStatus.CONFLICT
    taken(one.take("a"))


def test_what_others_took_while_a_record_was_lost_is_not_taken_twice() -> None:
    """Put back comes too late: the node is full. The holder keeps trying until there is room, or it is over."""
    parties = begun("one", "two")
    one, two = parties.parties
    mine = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    parties.evict("a")
    two.claim_table.read_records(["a"])
    theirs = taken(two.take("a", 8, seconds=5.0))
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert parties.ids("a") == [theirs.id]
    assert one.own() == {("a", mine.id)}
    parties.clock.advance(5.0 + CLOCK_S)
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert parties.ids("a") == [mine.id]
    assert (one.claim_table.stats.lost, one.claim_table.stats.put_back) == (1, 1)


def test_a_claim_that_others_cleared_away_is_not_put_back() -> None:
    """It became an allocation: the record is the same, only the claim is gone."""
    cell = Cell(host("a"))
    parties = Parties("one", "two")
    parties.show(cell.view)
    one, two = parties.parties
    claim = taken(one.take("a", 3))
    two.claim_table.read_records(["a"])
    cell.change(host("a", 2, used=3, instances={claim.instance: None}))
    two.look(cell.view)
    theirs = taken(two.take("a", 1))
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert parties.ids("a") == [theirs.id]
    assert (one.claim_table.stats.lost, one.claim_table.stats.put_back) == (0, 0)


def test_bytes_that_are_no_record_are_the_same_as_lost() -> None:
    """A node must not be out of reach for as long as memcached lives."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    parties.put("a", b"N\x02rubbish")
    two.claim_table.read_records(["a"])
    assert two.claim_table.unsure_nodes() == ["a"]
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert parties.ids("a") == [claim.id]


def test_after_a_restart_no_record_of_before_takes_the_place_of_a_new_one() -> None:
    """memcached's ids start again at 1, and schedulers read nodes in the same order: the id that one of them knows may be
    that of the new record. Its write would bring back what the record was, without what others put there since, and looking
    sure (I8).
    """
    parties = begun("one", "two", nodes="abc")
    one, two = parties.parties
    parties.servers[0].restart()
    parties.clock.advance(1.0)
    two.claim_table.read_records("abc")
    for node in "abc":
        assert one.take(node, 1) is WriteStatus.CONFLICT
        assert parties.record(node).born == parties.clock.monotonic()
    assert sorted(one.claim_table.unsure_nodes()) == ["a", "b", "c"]


# -- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", EFFECTS.values(), ids=EFFECTS)
def test_a_claim_that_was_not_answered_is_none(fault: Fault) -> None:
    """Timed out, outcome unknown: whoever asked goes elsewhere, and what was written all the same is dropped."""
    parties = begun("one")
    [one] = parties.parties
    one.connections[0].faults.append(fault)
    assert isinstance(one.take("a", 5), StoreUnavailableError)
    assert (one.own(), one.claim_table.edited) == (set(), False)
    one.claim_table.read_records(["a"])
    assert one.free("a") == 8
    one.claim_table.flush_all()
    assert parties.ids("a") == []
    assert one.claim_table.stats.unanswered == 1


@pytest.mark.parametrize("fault", EFFECTS.values(), ids=EFFECTS)
def test_what_is_given_back_in_a_silence_is_given_back_after_it(fault: Fault) -> None:
    """A release that was not answered must not hold nodes for a day."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = taken(one.take("a", 5, seconds=24 * 3600.0))
    one.connections[0].faults.append(fault)
    one.claim_table.drop_claim("a", claim.id)
    assert isinstance(one.claim_table.flush()["a"], StoreUnavailableError)
    assert one.claim_table.edited
    one.claim_table.flush_all()
    assert (parties.ids("a"), one.free("a"), one.own()) == ([], 8, set())
    two.claim_table.read_records(["a"])
    assert two.free("a") == 8


@pytest.mark.parametrize("fault", EFFECTS.values(), ids=EFFECTS)
def test_what_is_held_stays_held_where_its_extension_was_not_answered(fault: Fault) -> None:
    """The claim is the same one, longer: with or without the answer its holder counts on it (I9). It was dropped at the next
    read, as one of which nobody knew.
    """
    parties = begun("one")
    [one] = parties.parties
    claim = taken(one.take("a", 5))
    longer = one.claim("a", 5, id=claim.id, kept=True, seconds=300.0)
    one.connections[0].faults.append(fault)
    one.claim_table.add_claim("a", longer)
    assert isinstance(one.claim_table.flush()["a"], StoreUnavailableError)
    one.claim_table.add_claim("a", longer)
    assert one.claim_table.flush() == {"a": WriteStatus.STORED}
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert (parties.record("a").claims, one.own()) == ((longer,), {("a", claim.id)})


def test_a_write_that_arrives_late_leaks_nothing_beyond_its_deadline() -> None:
    """It was still under way when its sender gave up, and nobody looked at the record since."""
    parties = begun("one", "two")
    one, two = parties.parties
    one.connections[0].faults.append(Fault(0, late=True))
    assert isinstance(one.take("a", 5), StoreUnavailableError)
    one.claim_table.read_records(["a"])
    assert [written.status for written in one.connections[0].arrive()] == [WriteStatus.STORED]
    two.claim_table.read_records(["a"])
    assert two.free("a") == 3
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S)
    two.claim_table.expire()
    assert two.free("a") == 8
    taken(two.take("a", 8))


def test_a_write_that_arrives_after_another_changes_nothing() -> None:
    """Its comparison fails."""
    parties = begun("one", "two")
    one, two = parties.parties
    one.connections[0].faults.append(Fault(0, late=True))
    assert isinstance(one.take("a", 5), StoreUnavailableError)
    claim = taken(two.take("a", 8))
    assert [written.status for written in one.connections[0].arrive()] == [WriteStatus.CONFLICT]
    assert parties.ids("a") == [claim.id]


def test_a_server_that_does_not_answer_costs_its_own_nodes_only() -> None:
    """What lives elsewhere is claimed as if nothing were."""
    parties = begun("one", servers=2, nodes="abcdefgh")
    [one] = parties.parties
    parties.servers[0].stop()
    for node in "abcdefgh":
        one.claim_table.add_claim(node, Claim(node, node, "one", parties.clock.monotonic() + CLAIM_TTL_S, {"VCPU": 1}))
    outcomes = one.claim_table.flush()
    for node in "abcdefgh":
        if parties.server_of(node) is parties.servers[0]:
            assert isinstance(outcomes[node], StoreUnavailableError)
        else:
            assert outcomes[node] is WriteStatus.STORED
    parties.servers[0].start()
    one.claim_table.flush_all()
    assert {node for node, _ in one.own()} == {node for node in "abcdefgh" if outcomes[node] is WriteStatus.STORED}


def test_a_node_whose_server_was_silent_is_claimed_when_it_answers() -> None:
    """Nothing was read of it before: that is done with the write."""
    parties = begun("one", "two")
    one, two = parties.parties
    theirs = taken(two.take("a", 5))
    one.connections[0].faults.append(Fault(0))
    assert isinstance(one.take("a", 1), StoreUnavailableError)
    assert one.take("a", 4) is WriteStatus.CONFLICT
    mine = taken(one.take("a", 3))
    assert parties.ids("a") == [theirs.id, mine.id]


def test_connections_count_what_they_should() -> None:
    """The double itself."""
    connection = Connection(MemoryServer(clock=ManualClock()), ahead_s=0.5)
    connection.fetch(["a", "b"])
    assert connection.calls == [("fetch", 2)]
    assert connection.server_time() == 1_000.5
