"""The claim table: of schedulers that take the same room one gets it (I8), losses are seen, and no room stays taken for
long.
"""

from __future__ import annotations

import msgspec
import pytest

from nodestate.errors import StoreUnavailableError
from nodestate.model import Receipt, Version
from nodestate.ports import WriteStatus
from nodestate.scheduling.claims import CLOCK_S, MAX_CLAIMS_COUNT, REASSERT_S, UNSURE_S, Claim
from nodestate.scheduling.claims.claim_table import MAX_FLUSHES_COUNT
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.scheduling.claim_tables import CLAIM_TTL_S, LOSSES, CountingConnection, Loss, Parties, Party
from tests.scheduling.fleets import ChangingPartition, host

LOST = pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
EFFECTS = {"nothing done": Fault(0), "all done": Fault(None)}


def begun(*names: str, servers: int = 1, vcpu: int = 8, nodes: str = "a") -> Parties:
    """Schedulers that all know these nodes, whose records are old enough not to be unsure."""
    parties = Parties(*names, servers=servers)
    parties.show(ChangingPartition(*(host(name, vcpu=vcpu) for name in nodes)).view)
    parties.clock.advance(UNSURE_S)
    return parties


def taken(outcome: object) -> Claim:
    """The claim that was stored."""
    assert isinstance(outcome, Claim), outcome
    return outcome


# -- adding claims ---------------------------------------------------------------------------------


def test_other_schedulers_see_a_claim_when_they_read_the_record() -> None:
    """The claimant's own fleet shows the claim at once, before it is written."""
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


def test_of_two_schedulers_that_take_the_last_room_one_gets_it_and_the_other_sees_the_claim() -> None:
    """I8: the second writes nothing, and needs no further read to choose again."""
    parties = begun("one", "two")
    one, two = parties.parties
    first = taken(one.take("a", 5))
    assert two.take("a", 5) is WriteStatus.CONFLICT
    assert (two.free("a"), two.own(), two.claim_table.edited) == (3, set(), False)
    second = taken(two.take("a", 3))
    assert parties.ids("a") == [first.id, second.id]
    assert (one.claim_table.stats.conflicts, two.claim_table.stats.conflicts) == (0, 1)


def test_conflict_on_a_node_with_room_for_both_costs_one_more_try() -> None:
    """Compare-and-swap knows nothing of room, so the second write fails once even if both claims fit."""
    parties = begun("one", "two")
    one, two = parties.parties
    taken(one.take("a", 2))
    assert two.take("a", 2) is WriteStatus.CONFLICT
    taken(two.take("a", 2))
    assert (two.free("a"), len(parties.ids("a"))) == (4, 2)


def test_claim_outside_the_units_of_the_node_is_not_sent() -> None:
    """A filter of another package may have let it pass, or the inventory changed since the node was chosen. A claim of
    a resize is only the growth, which is in no unit.
    """
    parties = Parties("one")
    inventory = {"VCPU": {"total": 64, "min_unit": 2, "max_unit": 4, "step_size": 2}}
    parties.show(ChangingPartition(host("a", inventory=inventory)).view)
    parties.clock.advance(UNSURE_S)
    [one] = parties.parties
    for vcpu in (1, 3, 6):
        assert one.take("a", vcpu) is WriteStatus.CONFLICT
    assert (one.free("a"), parties.record("a").claims) == (64, ())
    taken(one.take("a", 4))
    taken(one.take("a", 1, resize=True))


def test_claim_that_does_not_fit_the_known_record_is_not_sent() -> None:
    """Several instances of one batch may choose the same room, each by itself."""
    parties = begun("one")
    [one] = parties.parties
    one.connections[0].calls.clear()
    assert one.take("a", 9) is WriteStatus.CONFLICT
    assert one.connections[0].calls == []
    assert (one.free("a"), parties.ids("a")) == (8, [])


def test_resource_class_that_a_node_lacks_cannot_be_claimed() -> None:
    """Its free amount is 0, and 0 is not less than 0."""
    parties = begun("one")
    [one] = parties.parties
    assert one.take("a", resources={"VCPU": 1, "CUSTOM_GPU": 1}) is WriteStatus.CONFLICT


def test_batch_costs_one_round_trip_to_each_server() -> None:
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


def test_batch_reads_the_item_limit_of_each_server_once() -> None:
    """Each reading looks at the connection, which costs a system call: the cost must not grow with the batch."""
    parties = begun("one", servers=2, nodes="abcdefgh")
    [one] = parties.parties
    for connection in one.connections:
        connection.limit_readings_count = 0
    for node in "abcdefgh":
        one.claim_table.add_claim(node, one.claim(node))
    assert set(one.claim_table.flush().values()) == {WriteStatus.STORED}
    assert [connection.limit_readings_count for connection in one.connections] == [1, 1]


def test_anti_affinity_limit_holds_against_other_schedulers() -> None:
    """There is room, but another scheduler has placed a member of the group on the node."""
    parties = begun("one", "two", "three")
    one, two, three = parties.parties
    policy = {"group": "web", "hints": {"group_policy": "anti-affinity", "max_per_node": 2}}
    taken(one.take("a", **policy))
    assert two.take("a", **policy) is WriteStatus.CONFLICT
    taken(two.take("a", **policy))
    assert three.take("a", **policy) is WriteStatus.CONFLICT
    assert three.take("a", **policy) is WriteStatus.CONFLICT
    taken(three.take("a", group="web"))


def test_claim_is_extended_by_adding_it_again() -> None:
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


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("writer", ["itself", "another scheduler"])
def test_a_claim_that_was_lost_keeps_the_later_deadline(copies: int, writer: str) -> None:
    """A scheduler plans to write a lost claim again. Before it does, the claim is written with a later deadline.

    Regression: the plan was carried out, and the claim had the earlier deadline again.
    """
    parties = Parties("one", "two", servers=2, copies=copies)
    parties.show(ChangingPartition(host("a", vcpu=8)).view)
    parties.clock.advance(UNSURE_S + CLOCK_S)
    first, second = parties.parties
    one, two = first.claim_table, second.claim_table
    claim = taken(first.take("a", 2))
    longer = msgspec.structs.replace(claim, until=claim.until + 1_000.0)
    two.read_records(["a"])
    two.hold_claim("a", claim)
    if writer == "itself":
        for connection in first.connections:
            connection.plan = lambda _operation, _count: Fault(0)
        assert isinstance(first.take("a"), StoreUnavailableError)  # so it reads the record before the next write
        for connection in first.connections:
            connection.plan = lambda _operation, _count: None
    parties.clock.advance(1.0)
    for server in parties.servers:
        server.flush()
    if writer == "another scheduler":
        one.reassert_own_claims()
        two.read_records(["a"])
    table = one if writer == "itself" else two
    table.add_claim("a", longer, is_renewal=True)
    assert table.flush() == {"a": WriteStatus.STORED}
    one.read_records(["a"])
    one.flush_all()
    assert parties.record("a").claims == (longer,)


def test_full_record_is_told_from_a_conflict() -> None:
    """A scheduler that took it for a conflict would try for ever."""
    parties = begun("one", vcpu=2 * MAX_CLAIMS_COUNT)
    [one] = parties.parties
    for _ in range(MAX_CLAIMS_COUNT):
        one.claim_table.add_claim("a", one.claim("a"))
    assert one.claim_table.flush() == {"a": WriteStatus.STORED}
    assert one.take("a") is WriteStatus.FULL
    assert (len(parties.ids("a")), one.free("a")) == (MAX_CLAIMS_COUNT, MAX_CLAIMS_COUNT)
    parties.clock.advance(CLAIM_TTL_S + CLOCK_S)
    taken(one.take("a"))


def test_record_that_does_not_fit_an_item_fails_by_itself() -> None:
    """One claim that is too large for the server must not fail the whole batch."""
    clock = ManualClock()
    parties = Parties("one", server=MemoryServer(clock=clock, max_value_bytes=4_000))
    parties.show(ChangingPartition(host("a"), host("b")).view)
    [one] = parties.parties
    large, small = one.claim("a", hints={"same_host": ["i" * 200] * 20}), one.claim("b")
    one.claim_table.add_claim("a", large)
    one.claim_table.add_claim("b", small)
    assert one.claim_table.flush() == {"a": WriteStatus.FULL, "b": WriteStatus.STORED}
    assert (parties.ids("a"), parties.ids("b")) == ([], [small.id])
    assert (one.free("a"), one.own()) == (8, {("b", small.id)})


def test_server_without_memory_is_told_from_a_conflict() -> None:
    """Under memcached's option -M the server refuses the claim and keeps the old record."""
    clock = ManualClock()
    parties = Parties("one", server=MemoryServer(clock=clock, max_bytes=700, no_evict=True))
    parties.show(ChangingPartition(host("a")).view)
    [one] = parties.parties
    claim = taken(one.take("a"))
    assert one.take("a", hints={"same_host": ["i" * 200] * 3}) is WriteStatus.FULL
    assert (parties.ids("a"), one.free("a")) == ([claim.id], 7)


# -- dropping claims -------------------------------------------------------------------------------


def test_dropped_claim_is_removed_although_another_scheduler_wrote_first() -> None:
    """After a conflict a new claim is decided again, but a dropped claim is unwanted in any case."""
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


def test_claim_that_is_dropped_before_it_was_written_is_never_written() -> None:
    """The instance was given up within the same batch."""
    parties = begun("one")
    [one] = parties.parties
    claim = one.claim("a", 5)
    one.claim_table.add_claim("a", claim)
    one.claim_table.drop_claim("a", claim.id)
    assert one.free("a") == 8
    one.claim_table.flush_all()
    assert (parties.ids("a"), one.own()) == ([], set())


def test_flush_all_ends_although_other_schedulers_keep_writing_first() -> None:
    """Every loop has an end: the claim expires at its deadline anyway."""
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


def test_claim_expires_at_its_deadline_for_every_scheduler() -> None:
    """Its scheduler may be dead. The next write removes the claim from the record."""
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


def test_claims_expire_on_each_server_by_itself() -> None:
    """Each server has its own clock, and one of them may not answer."""
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


def test_claim_that_is_held_for_a_day_takes_no_growing_memory() -> None:
    """A reservation may be held for 24 hours, and its records are read every few seconds."""
    parties = begun("one")
    [one] = parties.parties
    taken(one.take("a", seconds=24 * 3600.0))
    for _ in range(50):
        parties.clock.advance(REASSERT_S)
        one.claim_table.reassert_own_claims()
        one.claim_table.flush_all()
    assert [len(due) for due in one.claim_table._deadlines._heaps] == [1]


# -- views ----------------------------------------------------------------------------------------


def test_a_claim_that_became_an_allocation_counts_once() -> None:
    """It counts first as a claim, then in the node's usage; the next write removes it from the record."""
    cell = ChangingPartition(host("a"))
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


def test_scheduler_that_has_not_seen_an_allocation_may_not_claim_on_its_node() -> None:
    """The claim is gone from the record, and the allocation is not in the older view: the room would look free (I8)."""
    cell = ChangingPartition(host("a"))
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


def test_scheduler_that_reads_a_newer_seen_after_a_conflict_may_not_claim_either() -> None:
    """The scheduler learns of the allocation by the conflict."""
    cell = ChangingPartition(host("a"))
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


def test_node_that_refused_by_a_newer_state_is_not_claimed_by_an_older_view() -> None:
    """The agent knows something that no view shows; other claims of the same batch must not go there either."""
    parties = begun("one")
    [one] = parties.parties
    claim = taken(one.take("a"))
    one.claim_table.drop_claim("a", claim.id, Version(1, 4))
    assert not one.usable("a")
    assert one.take("a") is WriteStatus.CONFLICT
    one.claim_table.flush_all()
    assert (parties.ids("a"), parties.record("a").seen) == ([], Version(1, 4))


def test_room_of_an_ended_instance_is_free() -> None:
    """Its claim is still in the record, and must not count again."""
    cell = ChangingPartition(host("a"))
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


def test_claim_of_a_resize_counts_until_it_is_dropped() -> None:
    """The node reports the instance before and after: only the scheduler that resizes it knows when it is done."""
    cell = ChangingPartition(host("a", used=2, instances={"vm": None}))
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


def test_claims_count_on_a_node_that_appears_later() -> None:
    """The other scheduler's view is newer."""
    parties = Parties("one", "two")
    one, two = parties.parties
    cell = ChangingPartition(host("a"))
    one.look(cell.view)
    taken(one.take("a", 6))
    two.claim_table.read_records(["a"])
    two.look(cell.view)
    assert two.free("a") == 2
    assert two.take("b") is WriteStatus.CONFLICT, "no view shows the node, so its capacity is unknown"


# -- lost records ----------------------------------------------------------------------------------


@LOST
def test_own_claims_that_were_lost_with_a_record_are_written_again(lose: Loss) -> None:
    """The holder does so as soon as it looks: memcached may lose any item at any time."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    lose(parties, "a")
    two.claim_table.read_records(["a"])
    assert (two.free("a"), two.claim_table.unsure_nodes()) == (8, {"a"})
    one.claim_table.reassert_own_claims()
    assert one.free("a") == 3
    one.claim_table.flush_all()
    assert parties.record("a").claims == (claim,)
    two.claim_table.read_records(["a"])
    assert two.free("a") == 3
    assert (one.claim_table.stats.lost, one.claim_table.stats.restored) == (1, 1)


@LOST
def test_loss_that_a_write_meets_is_seen(lose: Loss) -> None:
    """The write finds no item to compare with, and must not be repeated on the old record."""
    parties = begun("one")
    [one] = parties.parties
    claim = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    lose(parties, "a")
    assert one.take("a", 1) is WriteStatus.CONFLICT
    assert one.claim_table.unsure_nodes() == {"a"}
    one.claim_table.flush_all()
    assert parties.ids("a") == [claim.id]


def test_loss_is_seen_by_any_clock_of_the_scheduler_that_created_the_record() -> None:
    """Clients know the server's clock to the second, so a newer record may have the earlier time of creation."""
    parties = Parties("one")
    [one] = parties.parties
    two = Party("two", parties.servers, parties.clock, ahead_s=-0.9)
    cell = ChangingPartition(host("a"))
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
def test_unsure_record_takes_no_claim_that_avoids_unsure_records(lose: Loss) -> None:
    """A reservation asks no agent, so it passes over such a node until the holders of lost claims have written them
    again. A boot goes on, as the agent knows its node.
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
    assert two.claim_table.unsure_nodes() == set()


def test_record_that_a_write_creates_takes_no_claim_that_avoids_unsure_records() -> None:
    """The server did not answer when the node's record was to be read first."""
    parties = Parties("one")
    [one] = parties.parties
    parties.servers[0].stop()
    one.look(ChangingPartition(host("a")).view)
    parties.servers[0].start()
    assert one.take("a", avoid_unsure=True) is WriteStatus.CONFLICT
    taken(one.take("a"))


def test_lost_claim_is_not_written_again_on_a_node_that_is_full_by_now() -> None:
    """The holder is late. It tries again until there is room, or the claim has expired."""
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
    assert (one.claim_table.stats.lost, one.claim_table.stats.restored) == (1, 1)


def test_claim_that_another_scheduler_removed_is_not_written_again() -> None:
    """The claim became an allocation: the record is the same one, without the claim."""
    cell = ChangingPartition(host("a"))
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
    assert (one.claim_table.stats.lost, one.claim_table.stats.restored) == (0, 0)


def test_corrupt_record_is_replaced_like_a_lost_one() -> None:
    """A node must not stay unreachable for as long as memcached lives."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = taken(one.take("a", 5))
    parties.clock.advance(1.0)
    parties.put("a", b"N\x02rubbish")
    two.claim_table.read_records(["a"])
    assert two.claim_table.unsure_nodes() == {"a"}
    one.claim_table.reassert_own_claims()
    one.claim_table.flush_all()
    assert parties.ids("a") == [claim.id]


def test_record_from_before_a_restart_never_replaces_a_new_one() -> None:
    """After a restart memcached's ids start at 1 again, and schedulers read nodes in the same order: an id that a
    scheduler knows may be the id of the new record. Its write would restore the old record, without the claims written
    since, and it would not look unsure (I8).
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


# -- servers that do not answer --------------------------------------------------------------------


@pytest.mark.parametrize("fault", EFFECTS.values(), ids=EFFECTS)
def test_claim_whose_write_was_not_answered_does_not_count(fault: Fault) -> None:
    """The outcome is unknown: the scheduler goes elsewhere, and drops the claim if it was stored after all."""
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
def test_unanswered_removal_is_repeated(fault: Fault) -> None:
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


def test_room_of_a_lost_claim_stays_subtracted_while_another_claim_is_written() -> None:
    """The record is read, and the loss found, in the middle of a flush."""
    parties = begun("one")
    [one] = parties.parties
    lost = taken(one.take("a", 4))
    one.connections[0].faults.append(Fault(0))
    one.take("a", 1)  # not answered: the record is unknown
    parties.clock.advance(1.0)
    parties.evict("a")
    taken(one.take("a", 2))
    assert one.free("a") == 8 - 4 - 2
    one.claim_table.flush_all()
    assert (lost.id in parties.ids("a"), one.free("a")) == (True, 8 - 4 - 2)


@pytest.mark.parametrize("fault", EFFECTS.values(), ids=EFFECTS)
def test_claim_stays_held_if_its_extension_was_not_answered(fault: Fault) -> None:
    """It is the same claim with a later deadline: its holder counts on it in any case (I9). Regression: the next read
    dropped it as a claim of unknown outcome.
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


def test_claim_of_a_late_write_expires_at_its_deadline() -> None:
    """The write was still under way when its sender gave up, and no scheduler read the record since."""
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


def test_late_write_after_another_write_changes_nothing() -> None:
    """Its comparison fails."""
    parties = begun("one", "two")
    one, two = parties.parties
    one.connections[0].faults.append(Fault(0, late=True))
    assert isinstance(one.take("a", 5), StoreUnavailableError)
    claim = taken(two.take("a", 8))
    assert [written.status for written in one.connections[0].arrive()] == [WriteStatus.CONFLICT]
    assert parties.ids("a") == [claim.id]


def test_server_that_does_not_answer_affects_only_its_own_nodes() -> None:
    """Nodes whose records are on other servers are claimed as usual."""
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


def test_node_is_claimed_once_its_server_answers_again() -> None:
    """Its record was never read: the write reads it first."""
    parties = begun("one", "two")
    one, two = parties.parties
    theirs = taken(two.take("a", 5))
    one.connections[0].faults.append(Fault(0))
    assert isinstance(one.take("a", 1), StoreUnavailableError)
    assert one.take("a", 4) is WriteStatus.CONFLICT
    mine = taken(one.take("a", 3))
    assert parties.ids("a") == [theirs.id, mine.id]


def test_connection_counts_its_calls() -> None:
    """This is a test of the double itself."""
    connection = CountingConnection(MemoryServer(clock=ManualClock()), ahead_s=0.5)
    connection.fetch(["a", "b"])
    assert connection.calls == [("fetch", 2)]
    assert connection.server_time() == 1_000.5


def test_a_dropped_reservation_claim_does_not_keep_a_boot_from_an_unsure_record() -> None:
    """The claim that avoids unsure records is dropped before the flush, and only the other one is written."""
    parties = Parties("one")
    parties.show(ChangingPartition(host("a", vcpu=8)).view)
    [one] = parties.parties
    cautious, plain = one.claim("a"), one.claim("a")
    one.claim_table.add_claim("a", cautious, avoid_unsure=True)
    one.claim_table.drop_claim("a", cautious.id)
    one.claim_table.add_claim("a", plain)
    assert one.claim_table.flush() == {"a": WriteStatus.STORED}
    assert parties.ids("a") == [plain.id]


def test_nothing_is_kept_of_an_allocated_claim_that_another_scheduler_removed() -> None:
    parties = begun("one", "two")
    one, two = parties.parties
    claim = taken(one.take("a"))
    one.claim_table.own.mark_allocated("a", claim.id, Version(1, 2))
    two.claim_table.read_records(["a"])
    two.claim_table.drop_claim("a", claim.id)
    two.claim_table.flush()
    one.claim_table.reassert_own_claims()
    assert one.own() == set()
    assert one.claim_table.own.allocated_version(claim.id) is None
