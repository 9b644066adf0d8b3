"""Two copies of each claim record: one server is away, returns empty, returns with old contents, or the cell is split.

The checks use the bytes in the servers and the outcomes that schedulers got, never the opinion of a scheduler.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nodestate.config import Config
from nodestate.designs import connections
from nodestate.errors import StoreUnavailableError
from nodestate.model import partitioning
from nodestate.ports import Put, Write, WriteStatus
from nodestate.scheduling.claims import CLAIMS, CLOCK_S, REASSERT_S, UNSURE_S, Claim, ClaimRecord
from nodestate.scheduling.claims.record import IN_FLIGHT_S
from nodestate.scheduling.claims.record_copies import merged
from nodestate.scheduling.request import parse
from nodestate.store import keys
from nodestate.testing import Fault, FaultyStore, ManualClock, MemoryServer, MemoryStore, script
from tests.planted_values import item_at
from tests.scheduling.claim_tables import CELL, Parties, Party
from tests.scheduling.fleets import ChangingPartition, host
from tests.scheduling.test_claim_record import claim as made_claim
from tests.scheduling.test_claim_record import records

NODE: Final = "a"
VCPU: Final = 6
KEY: Final = keys.claim(CELL, NODE)
AWAY: Final = Fault(0)


def begun(*names: str, servers: int = 2) -> Parties:
    """Schedulers that look at one node, whose record is sure, in two copies."""
    parties = Parties(*names, servers=servers, copies=2)
    parties.show(ChangingPartition(host(NODE, vcpu=VCPU)).view)
    parties.clock.advance(UNSURE_S + CLOCK_S)
    return parties


def homes(parties: Parties) -> tuple[int, int]:
    """The numbers of the servers of the first and the second copy."""
    home = partitioning.partition_of(NODE, len(parties.servers))
    return home, (home + 1) % len(parties.servers)


def cut(party: Party, *numbers: int) -> None:
    """Cut a scheduler off from these servers, and from no others."""
    for number, connection in enumerate(party.connections):
        connection.plan = lambda _operation, _count, is_cut=number in numbers: AWAY if is_cut else None
        connection.clock_away = number in numbers


def lose(parties: Parties, which: int, how: str) -> None:
    """Let one server lose its copy. ``how``: evict, flush or restart."""
    server = parties.servers[homes(parties)[which]]
    if how == "evict":
        server.evict((keys.claim, keys.claim_copy)[which](CELL, NODE))
    else:
        getattr(server, how)()


def upkeep(*parties: Party) -> None:
    """Do the upkeep of each scheduler, which is due every ``REASSERT_S`` seconds."""
    for party in parties:
        party.claim_table.expire()
        party.claim_table.reassert_own_claims()
        party.claim_table.read_records([NODE])
        party.claim_table.read_returned()
        party.claim_table.flush_all()


def heal(parties: Parties) -> None:
    """All schedulers reach all servers, and their upkeep makes the copies equal."""
    for party in parties.parties:
        cut(party)
    for _ in range(3):
        upkeep(*parties.parties)
        parties.clock.advance(CLOCK_S + 0.1)


def stored(outcome: object) -> Claim:
    assert isinstance(outcome, Claim), outcome
    return outcome


def both_ids(parties: Parties) -> tuple[list[str], list[str]]:
    """The ids of the claims in the first and in the second copy."""
    return parties.ids(NODE), [one.id for one in parties.copy_record(NODE).claims]


def extend(party: Party, claim: Claim, seconds: float) -> tuple[Claim, object]:
    """Keep a claim for some seconds from now, as a reservation does. Returns the claim to write, and the outcome."""
    until = party.claim_table.servers.time(NODE) + seconds
    extended = msgspec.structs.replace(claim, until=until, kept=True)
    party.claim_table.hold_claim(NODE, claim)
    party.claim_table.add_claim(NODE, extended, is_renewal=True)
    return extended, party.claim_table.flush()[NODE]


# -- merging --------------------------------------------------------------------------------------


@given(records, records)
def test_the_order_of_the_copies_does_not_matter(first: ClaimRecord, second: ClaimRecord) -> None:
    one, other = merged(first, second), merged(second, first)
    assert {claim.id: claim.until for claim in one.claims} == {claim.id: claim.until for claim in other.claims}
    assert (one.seen, one.born, one.removed) == (other.seen, other.born, other.removed)
    assert {claim.id for claim in merged(one, first).claims} == {claim.id for claim in one.claims}


def test_a_claim_that_one_copy_removed_is_not_brought_back_by_the_other() -> None:
    there = ClaimRecord(1.0, claims=(made_claim("1"), made_claim("2")), written_ms=5)
    without = ClaimRecord(1.0, claims=(made_claim("2"), made_claim("3")), written_ms=9, removed={"1": 110.0})
    assert [claim.id for claim in merged(there, without).claims] == ["2", "3"]


# -- one server is away ---------------------------------------------------------------------------


def test_a_claim_counts_once_both_copies_have_it() -> None:
    parties = begun("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 4, avoid_unsure=True))
    assert both_ids(parties) == ([claim.id], [claim.id])
    assert two.take(NODE, 4) is WriteStatus.CONFLICT
    assert two.free(NODE) == 2


@pytest.mark.parametrize("away", [0, 1])
def test_boots_go_on_while_the_server_of_one_copy_is_away(away: int) -> None:
    """Reservations promise a node without asking its agent, so they wait."""
    parties = begun("one", "two")
    one, two = parties.parties
    before = stored(one.take(NODE, 2, avoid_unsure=True))
    for party in (one, two):
        cut(party, homes(parties)[away])
    assert two.take(NODE, 2, avoid_unsure=True) is WriteStatus.CONFLICT
    claim = stored(two.take(NODE, 2))
    upkeep(one)
    assert (one.free(NODE), two.free(NODE)) == (2, 2)
    assert set(both_ids(parties)[1 - away]) == {before.id, claim.id}
    assert one.claim_table.unsure_nodes() == {NODE}
    heal(parties)
    assert [set(ids) for ids in both_ids(parties)] == [{before.id, claim.id}] * 2
    assert one.claim_table.unsure_nodes() == set()
    stored(one.take(NODE, 2, avoid_unsure=True))


@pytest.mark.parametrize("away", [0, 1])
def test_a_claim_that_was_dropped_while_one_server_was_away_does_not_come_back(away: int) -> None:
    parties = begun("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 4, seconds=3600.0))
    for party in (one, two):
        cut(party, homes(parties)[away])
    one.claim_table.drop_claim(NODE, claim.id)
    one.claim_table.flush_all()
    upkeep(two)
    stored(two.take(NODE, 1))
    assert claim.id in both_ids(parties)[away]
    heal(parties)
    assert claim.id not in (*both_ids(parties)[0], *both_ids(parties)[1])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_server_that_returns_empty_gets_the_claims_of_the_other_one(lost: int) -> None:
    """Also the claims of a scheduler that is gone, and could not write them again."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 4, seconds=3600.0, avoid_unsure=True))
    parties.parties.remove(one)
    parties.servers[homes(parties)[lost]].flush()
    upkeep(two)
    assert both_ids(parties) == ([claim.id], [claim.id])
    assert two.claim_table.unsure_nodes() == {NODE}  # the copy that is left may have missed a write
    assert two.free(NODE) == 2
    parties.clock.advance(UNSURE_S + CLOCK_S)
    stored(two.take(NODE, 2, avoid_unsure=True))


@pytest.mark.parametrize("old", [0, 1])
def test_a_server_that_returns_with_an_old_copy_neither_loses_nor_revives_claims(old: int) -> None:
    """As after a virtual machine was set back to an image with its memory."""
    parties = begun("one", "two")
    one = parties.parties[0]
    ended = stored(one.take(NODE, 2, seconds=3600.0))
    server = parties.servers[homes(parties)[old]]
    key = (keys.claim, keys.claim_copy)[old](CELL, NODE)
    image = server.fetch([key])[key].value
    one.claim_table.drop_claim(NODE, ended.id)
    one.claim_table.flush_all()
    later = stored(one.take(NODE, 3, seconds=3600.0))
    [written] = server.write([Write(Put.CAS, key, image, server.fetch([key])[key].cas)])
    assert written.status is WriteStatus.STORED
    heal(parties)
    assert both_ids(parties) == ([later.id], [later.id])


def test_a_scheduler_that_starts_while_the_first_server_is_away_knows_its_clock() -> None:
    """Deadlines are times of the first server, and the clocks of two servers may differ by hours."""
    parties = Parties("one", servers=2, copies=2)
    home, second = homes(parties)
    shift = 7_200.0
    [one] = parties.parties
    one.connections[home]._ahead_s = shift
    view = ChangingPartition(host(NODE, vcpu=VCPU)).view
    parties.show(view)
    claim = stored(one.take(NODE, 4, seconds=60.0))
    two = parties.start("two")
    two.connections[home]._ahead_s = shift
    cut(two, home)
    two.look(view)
    assert two.free(NODE) == 2
    assert claim.until - two.claim_table.servers.time(NODE) == pytest.approx(60.0, abs=2 * CLOCK_S)
    parties.clock.advance(60.0 + 2 * CLOCK_S)
    two.claim_table.expire()
    assert two.free(NODE) == VCPU
    assert second != home


def test_no_server_with_a_copy_answers() -> None:
    """The outcome is an error, as with one copy."""
    parties = begun("one")
    [one] = parties.parties
    claim = one.claim(NODE)
    cut(one, 0, 1)
    one.claim_table.add_claim(NODE, claim)
    assert isinstance(one.claim_table.flush()[NODE], StoreUnavailableError)
    with pytest.raises(StoreUnavailableError):
        one.claim_table.servers.require_all()
    cut(one, homes(parties)[0])
    one.claim_table.servers.require_all()


def test_a_scheduler_without_copies_and_one_with_copies_see_each_other() -> None:
    """As while the setting is being changed."""
    parties = begun("one")
    [one] = parties.parties
    old = Party("old", parties.servers, parties.clock)
    old.look(ChangingPartition(host(NODE, vcpu=VCPU)).view)
    first = stored(old.take(NODE, 2))
    upkeep(one)
    assert one.free(NODE) == 4
    second = stored(one.take(NODE, 2))
    old.refresh()
    assert old.free(NODE) == 2
    assert set(parties.ids(NODE)) == {first.id, second.id}


def test_schedulers_that_see_different_servers_find_each_others_claims_after_the_split() -> None:
    """Meanwhile both boot, and the agent admits as much as fits. Neither promises the node."""
    parties = begun("one", "two")
    one, two = parties.parties
    cut(one, homes(parties)[0])
    cut(two, homes(parties)[1])
    mine, theirs = stored(one.take(NODE, 4)), stored(two.take(NODE, 4))
    assert one.take(NODE, 1, avoid_unsure=True) is WriteStatus.CONFLICT
    assert two.take(NODE, 1, avoid_unsure=True) is WriteStatus.CONFLICT
    heal(parties)
    assert (one.free(NODE), two.free(NODE)) == (-2, -2)
    two.claim_table.drop_claim(NODE, theirs.id)  # its agent refused it
    upkeep(two, one)
    assert both_ids(parties) == ([mine.id], [mine.id])


def test_a_claim_is_made_although_another_scheduler_writes_between_its_two_writes() -> None:
    """The second copy is written again, after both were read."""
    parties = begun("one", "two")
    one, two = parties.parties
    claims = list[Claim]()

    def intrude() -> None:
        one.connections[homes(parties)[1]].before_write = lambda: None
        upkeep(two)
        claims.append(stored(two.take(NODE, 2)))

    one.connections[homes(parties)[1]].before_write = intrude
    claims.append(stored(one.take(NODE, 2, avoid_unsure=True)))
    assert [set(ids) for ids in both_ids(parties)] == [{claim.id for claim in claims}] * 2


def test_a_reservation_without_a_node_says_that_a_server_is_away() -> None:
    parties = begun("one")
    [one] = parties.parties
    cut(one, 0)
    upkeep(one)
    [placing] = one.place(parse({"resources": {"VCPU": 1}}), avoid_unsure=True)
    assert str(placing.failure) == (
        "claims may be missing from the records of 1 node: the server of one copy does not answer; try again when "
        "'nodestate doctor' finds it"
    )


def test_a_claim_server_that_is_away_is_asked_less_often_if_there_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a frozen server costs its timeout, and the other copy is used meanwhile."""
    calls = dict[int, int]()
    for replicas in (1, 2):
        clock, count = ManualClock(), itertools.count()

        def fail(_operation: str, _number: int, count: Iterator[int] = count) -> Fault:
            next(count)
            return AWAY

        away = FaultyStore(MemoryStore(MemoryServer(clock=clock)), fail)
        monkeypatch.setattr(connections, "open_memcached", lambda *_, away=away: [away])
        [server] = connections.open_claims(Config(store="memcached://a:1,b:1", replicas=replicas), clock)
        for _ in range(100):
            with suppress(StoreUnavailableError):
                server.fetch([KEY])
            clock.advance(0.5)
        calls[replicas] = next(count)
    assert calls[2] < calls[1] / 2


def test_an_extension_is_not_lost_if_the_other_copy_is_written_after_it() -> None:
    """Regression: the deadline in the copy that was written last counted."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 2, seconds=60.0, avoid_unsure=True))
    upkeep(two)
    cut(one, homes(parties)[1])
    cut(two, homes(parties)[0])
    extended, outcome = extend(one, claim, 3600.0)
    assert outcome is WriteStatus.STORED
    parties.clock.advance(0.5)
    stored(two.take(NODE, 1))
    heal(parties)
    assert {parties.record(NODE).claims[0].until, parties.copy_record(NODE).claims[0].until} == {extended.until}


def test_a_claim_that_expires_in_one_copy_lives_on_if_it_was_extended_in_the_other() -> None:
    """Regression: the scheduler that removed the expired claim from its copy removed the extended one as well."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 2, seconds=60.0, avoid_unsure=True))
    upkeep(two)
    cut(one, homes(parties)[1])
    cut(two, homes(parties)[0])
    extend(one, claim, 3600.0)
    parties.clock.advance(60.0 + 1.5 * CLOCK_S)
    stored(two.take(NODE, 1))
    heal(parties)
    assert claim.id in both_ids(parties)[0]


def test_a_reservation_that_is_released_stays_released_if_its_extension_turns_up() -> None:
    """Regression: the removal was kept until the deadline before the extension."""
    parties = begun("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 2, seconds=20.0, avoid_unsure=True, reservation="r"))
    upkeep(two)
    cut(one, homes(parties)[1])
    cut(two, homes(parties)[0])
    extend(one, claim, 3600.0)
    two.claim_table.drop_claim(NODE, claim.id)
    two.claim_table.flush_all()
    for _ in range(3):
        parties.clock.advance(10.0)
        stored(two.take(NODE, 1))
    heal(parties)
    assert claim.id not in both_ids(parties)[0]


def test_a_write_to_the_second_copy_that_is_late_does_not_bring_a_removed_claim_back() -> None:
    """As after a frozen server goes on. Regression: the removal was left out before the second copy had it."""
    parties = begun("one", "two")
    one, two = parties.parties
    second = homes(parties)[1]
    one.connections[second].plan = lambda operation, _count: Fault(0, late=True) if operation == "write" else None
    claim = stored(one.take(NODE, 2, seconds=3600.0))
    parties.parties.remove(one)
    cut(two, second)
    upkeep(two)
    two.claim_table.drop_claim(NODE, claim.id)
    two.claim_table.flush_all()
    cut(two)
    two.claim_table.read_records([NODE])
    two.connections[second].plan = lambda operation, _count: Fault(0) if operation == "write" else None
    stored(two.take(NODE, 1))
    one.connections[second].arrive()
    heal(parties)
    assert claim.id not in both_ids(parties)[0]


def test_the_second_copy_counts_although_an_earlier_record_equal_to_it_was_stored_as_the_first() -> None:
    """Regression: both counted as damaged, and an empty record replaced them."""
    parties = begun("one")
    [one] = parties.parties
    claim = stored(one.take(NODE, 2, seconds=3600.0, avoid_unsure=True))
    image = item_at(parties.server_of(NODE), keys.claim(CELL, NODE)).value
    cut(one, homes(parties)[1])
    stored(one.take(NODE, 1))
    parties.put(NODE, image)
    one.claim_table.own.drop(NODE, claim.id)  # as if its scheduler had died
    heal(parties)
    assert claim.id in both_ids(parties)[0]


# -- clocks ---------------------------------------------------------------------------------------

SHIFTS: Final = [-7_200, 7_200, -30, 30, 10 * 24 * 3_600]
"""By how many seconds a server's clock differs after a restart."""


def restart(parties: Parties, which: int, shift: int) -> None:
    """One server loses its copies, and has another clock from then on."""
    number = homes(parties)[which]
    parties.servers[number].restart()
    for party in parties.parties:
        party.connections[number]._ahead_s += shift
        party.connections[number].lose()  # no write outlives the connection


def begun_late(*names: str) -> Parties:
    """As ``begun``, with a clock that can be set back."""
    parties = Parties(*names, servers=2, copies=2)
    parties.clock.advance(100_000.0)
    parties.show(ChangingPartition(host(NODE, vcpu=VCPU)).view)
    parties.clock.advance(UNSURE_S + CLOCK_S)
    return parties


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("which", [0, 1])
def test_claims_keep_their_time_if_a_server_returns_with_another_clock(which: int, shift: int) -> None:
    """Regression: they lived longer or shorter by the difference, or counted as damaged, or as an earlier record."""
    parties = begun_late("one", "two")
    one, two = parties.parties
    long = stored(one.take(NODE, 2, seconds=3_600.0, avoid_unsure=True))
    short = stored(one.take(NODE, 2, seconds=30.0))
    parties.parties.remove(one)
    upkeep(two)
    restart(parties, which, shift)
    upkeep(two)
    assert both_ids(parties)[0] == [long.id, short.id]
    parties.clock.advance(40.0)
    upkeep(two)
    assert two.free(NODE) == 4
    for _ in range(35):
        parties.clock.advance(100.0)
        upkeep(two)
    assert two.free(NODE) == 4
    assert all(long.id in ids for ids in both_ids(parties))
    parties.clock.advance(70.0)
    upkeep(two)
    assert two.free(NODE) == VCPU


@pytest.mark.parametrize("shift", SHIFTS)
def test_no_claim_expires_because_its_first_server_returns_with_another_clock(shift: int) -> None:
    """The scheduler knew the second copy only. Regression: it judged that copy by the new clock, and wrote it."""
    parties = begun_late("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 2, seconds=3_600.0, avoid_unsure=True))
    parties.parties.remove(one)
    cut(two, homes(parties)[0])
    upkeep(two)
    restart(parties, 0, shift)
    cut(two)
    assert two.take(NODE, 1) is WriteStatus.CONFLICT, "its deadline may be one of the former clock"
    last = stored(two.take(NODE, 1))
    assert two.free(NODE) == 3
    upkeep(two)
    assert both_ids(parties)[0] == [claim.id, last.id]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_holder_writes_its_lost_claims_again_with_the_time_that_they_had(shift: int) -> None:
    """The second copy had missed them."""
    parties = begun_late("one")
    [one] = parties.parties
    cut(one, homes(parties)[1])
    claim = stored(one.take(NODE, 2, seconds=60.0))
    restart(parties, 0, shift)
    heal(parties)
    assert both_ids(parties) == ([claim.id], [claim.id])
    for _ in range(7):
        parties.clock.advance(10.0)
        upkeep(one)
    assert one.free(NODE) == VCPU


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_scheduler_that_does_not_see_the_first_server_goes_on_with_the_clock_that_it_knew(shift: int) -> None:
    """The other one writes the second copy with the new clock."""
    parties = begun_late("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 2, seconds=60.0, avoid_unsure=True))
    upkeep(two)
    cut(two, homes(parties)[0])
    restart(parties, 0, shift)
    upkeep(one)
    upkeep(two)
    parties.clock.advance(50.0)
    stored(two.take(NODE, 1))
    upkeep(one)
    assert one.free(NODE) == 3
    assert claim.id in both_ids(parties)[0]
    parties.clock.advance(20.0)
    upkeep(one, two)
    assert (one.free(NODE), two.free(NODE)) == (5, 5)


@pytest.mark.parametrize("ahead_s", [-(10**10), 10**10, 86_400])
def test_a_false_difference_of_clocks_in_a_record_concerns_this_record_only(ahead_s: int) -> None:
    """A scheduler that never saw the first server takes the difference from the records. Regression: from any one."""
    parties = Parties("one", servers=2, copies=2)
    parties.clock.advance(100_000.0)
    nodes = [name for name in map(str, range(30)) if partitioning.partition_of(name, 2) == 0][:5]
    view = ChangingPartition(*[host(name, vcpu=VCPU) for name in nodes]).view
    parties.show(view)
    [one] = parties.parties
    for node in nodes:
        stored(one.take(node, 2, seconds=60.0))
    key = keys.claim_copy(CELL, nodes[0])
    server = parties.servers[1]
    item = server.fetch([key])[key]
    false = msgspec.structs.replace(CLAIMS.unpack(item.value), ahead_s=ahead_s)
    server.write([Write(Put.CAS, key, CLAIMS.pack(false), item.cas)])
    two = parties.start("two")
    cut(two, 0)
    two.look(view)
    assert [two.free(node) for node in nodes[1:]] == [4] * 4
    assert two.claim_table.servers.time(nodes[0]) == pytest.approx(parties.clock.monotonic(), abs=2 * CLOCK_S)


@pytest.mark.parametrize("which", [0, 1])
def test_a_record_whose_removals_never_expire_is_replaced(which: int) -> None:
    """Regression: it was read, and kept its thousand removals for ever."""
    parties = begun("one")
    [one] = parties.parties
    claim = stored(one.take(NODE, 2, seconds=3_600.0, avoid_unsure=True))
    key = (keys.claim, keys.claim_copy)[which](CELL, NODE)
    server = parties.servers[homes(parties)[which]]
    item = server.fetch([key])[key]
    removed = {claim.id: 1e11, **{str(number): 1e11 for number in range(900)}}
    false = msgspec.structs.replace(CLAIMS.unpack(item.value), removed=removed)
    server.write([Write(Put.CAS, key, CLAIMS.pack(false), item.cas)])
    upkeep(one)
    assert both_ids(parties) == ([claim.id], [claim.id])
    assert (parties.record(NODE).removed, parties.copy_record(NODE).removed) == ({}, {})


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_second_copy_stays_sound_if_the_first_server_restarts_before_a_read(shift: int) -> None:
    """The connection fails, and is made again. Regression: an empty record replaced the second copy."""
    parties = begun_late("one", "two")
    one, two = parties.parties
    claim = stored(one.take(NODE, 2, seconds=3_600.0, avoid_unsure=True))
    parties.parties.remove(one)
    upkeep(two)
    restart(parties, 0, shift)
    two.connections[homes(parties)[0]].plan = script(AWAY)
    two.claim_table.read_records([NODE])
    assert [one.id for one in parties.copy_record(NODE).claims] == [claim.id]
    heal(parties)
    assert both_ids(parties)[0] == [claim.id]


@pytest.mark.parametrize("away", [0, 1])
def test_an_extension_is_written_to_the_copy_that_missed_it_although_the_other_copy_is_away(away: int) -> None:
    """One server is away while a reservation is extended. It returns, and the other one goes away and returns empty.

    Regression: the scheduler took the earlier deadline for the one that counts, and the reservation expired early.
    """
    parties = begun("one")
    [one] = parties.parties
    claim = stored(one.take(NODE, 2, seconds=60.0, avoid_unsure=True, reservation="r"))
    cut(one, homes(parties)[away])
    extended, outcome = extend(one, claim, 3_600.0)
    assert outcome is WriteStatus.STORED
    cut(one, homes(parties)[1 - away])
    upkeep(one)
    lose(parties, 1 - away, "restart")
    heal(parties)
    assert parties.record(NODE).claims == parties.copy_record(NODE).claims == (extended,)


# -- another number of copies ---------------------------------------------------------------------


def single(parties: Parties, name: str) -> Party:
    """A scheduler with ``replicas = 1``."""
    party = Party(name, parties.servers, parties.clock)
    for connection, like in zip(party.connections, parties.parties[0].connections, strict=True):
        connection._ahead_s = like._ahead_s
    party.look(ChangingPartition(host(NODE, vcpu=VCPU)).view)
    return party


@pytest.mark.parametrize("is_away", [False, True])
def test_a_claim_that_was_removed_while_there_was_one_copy_does_not_return_with_the_second_one(is_away: bool) -> None:
    """``replicas`` is 2, 1 and 2 again. ``is_away``: the second server is away when the setting is 2 again.

    Regression: a reservation that was released meanwhile counted until its deadline.
    """
    parties = begun("one")
    [one] = parties.parties
    claim = stored(one.take(NODE, 2, seconds=3_600.0, avoid_unsure=True, reservation="r"))
    alone = single(parties, "alone")
    parties.parties.clear()
    alone.claim_table.drop_claim(NODE, claim.id)
    alone.claim_table.flush_all()
    there = stored(alone.take(NODE, 1, seconds=3_600.0))
    parties.clock.advance(1.0)
    again = parties.start("again")
    parties.parties.append(again)
    if is_away:
        cut(again, homes(parties)[1])
    again.look(ChangingPartition(host(NODE, vcpu=VCPU)).view)
    stored(again.take(NODE, 1, seconds=5.0))
    parties.clock.advance(10.0)
    heal(parties)
    assert all(there.id in ids and claim.id not in ids for ids in both_ids(parties))
    assert again.free(NODE) == VCPU - 1


@pytest.mark.parametrize("away", [0, 1])
@pytest.mark.parametrize("how", ["evict", "flush", "restart"])
def test_a_claim_is_kept_if_one_copy_is_lost_while_the_server_of_the_other_one_is_away(how: str, away: int) -> None:
    """Its scheduler is gone. Regression: the record that was begun in the first copy said that it has one copy only, so
    the claim in the second one counted as removed.
    """
    parties = begun("one", "gone")
    one, gone = parties.parties
    claim = stored(gone.take(NODE, 2, seconds=3_600.0, avoid_unsure=True, reservation="r"))
    parties.parties.remove(gone)
    upkeep(one)
    cut(one, homes(parties)[away])
    parties.clock.advance(1.0)
    lose(parties, 1 - away, how)
    upkeep(one)
    between = stored(one.take(NODE, 1))
    parties.clock.advance(1.0)
    heal(parties)
    assert all(set(ids) == {claim.id, between.id} for ids in both_ids(parties))
    assert one.free(NODE) == VCPU - 3


def test_claims_in_the_second_copy_count_although_a_scheduler_with_one_copy_wrote_before() -> None:
    """As while the setting is being changed: the first copy missed the writes since."""
    parties = begun("one")
    [one] = parties.parties
    first = stored(single(parties, "alone").take(NODE, 1))
    cut(one, homes(parties)[0])
    parties.clock.advance(0.5)
    upkeep(one)
    second = stored(one.take(NODE, 2))
    heal(parties)
    assert set(both_ids(parties)[0]) == {first.id, second.id}


def test_the_nodes_that_reservations_avoid_are_looked_up_again_only_if_they_changed() -> None:
    """With two thirds of 10,000 nodes unsure, each round of a reservation took milliseconds to look them up."""
    parties = Parties("one", servers=3, copies=2)
    nodes = [str(number) for number in range(30)]
    parties.show(ChangingPartition(*[host(name, vcpu=VCPU) for name in nodes]).view)
    parties.clock.advance(UNSURE_S + CLOCK_S)
    [one] = parties.parties
    cut(one, 0)
    one.claim_table.read_records(nodes)
    unsure = one.claim_table.unsure_nodes()
    assert unsure == {name for name in nodes if partitioning.partition_of(name, 3) != 1}
    [placing] = one.place(parse({"resources": {"VCPU": 1}}), avoid_unsure=True)
    assert placing.node not in unsure
    rows = one.placer._chooser._unsure_rows()
    one.place(parse({"resources": {"VCPU": 1}}), avoid_unsure=True)
    assert one.placer._chooser._unsure_rows() is rows
    cut(one)
    one.claim_table.read_records(nodes[:10])
    assert one.claim_table.unsure_nodes() == unsure - set(nodes[:10])
    cut(one, 1)
    one.claim_table.read_records(nodes)
    [placing] = one.place(parse({"resources": {"VCPU": 1}}), avoid_unsure=True)
    assert partitioning.partition_of(placing.node or "", 3) == 2


# -- a full server --------------------------------------------------------------------------------


def fill(server: MemoryServer) -> None:
    """Leave no memory for a value that is larger than the one before."""
    server._max_bytes, server._no_evict = server._used_bytes, True


@pytest.mark.parametrize("which", [0, 1])
def test_boots_go_on_while_the_server_of_one_copy_is_full(which: int) -> None:
    """Regression: no claim could be made on its nodes."""
    parties = begun("one", "two")
    one, two = parties.parties
    server = parties.servers[homes(parties)[which]]
    fill(server)
    claim = stored(one.take(NODE, 2))
    upkeep(two)
    assert two.free(NODE) == 4
    assert two.take(NODE, 2, avoid_unsure=True) is WriteStatus.CONFLICT
    [placing] = two.place(parse({"resources": {"VCPU": 1}}), avoid_unsure=True)
    assert str(placing.failure) == (
        f"claims may be missing from the records of 1 node: {server.name} has no memory left for a copy; give it more "
        "memory, and try again"
    )
    server._max_bytes = None
    heal(parties)
    assert both_ids(parties) == ([claim.id], [claim.id])
    stored(two.take(NODE, 2, avoid_unsure=True))


def test_boots_go_on_although_the_second_copy_does_not_fit_its_server() -> None:
    parties = begun("one")
    [one] = parties.parties
    parties.servers[homes(parties)[1]].max_value_bytes = 10
    claim = stored(one.take(NODE, 2))
    assert both_ids(parties)[0] == [claim.id]
    assert one.claim_table.unsure_nodes() == {NODE}


def test_a_record_is_created_although_one_server_is_full() -> None:
    parties = Parties("one", servers=2, copies=2)
    fill(parties.servers[homes(parties)[1]])
    parties.show(ChangingPartition(host(NODE, vcpu=VCPU)).view)
    [one] = parties.parties
    claim = stored(one.take(NODE, 2))
    assert parties.ids(NODE) == [claim.id]
    assert one.claim_table.unsure_nodes() == {NODE}


def test_both_servers_are_full() -> None:
    """The outcome is the one of a full server without copies."""
    parties = begun("one")
    [one] = parties.parties
    for server in parties.servers:
        fill(server)
    assert one.take(NODE, 2) is WriteStatus.FULL


# -- any order ------------------------------------------------------------------------------------

numbers = st.integers(0, 5)
sizes = st.sampled_from([2, 3, 6])
pauses = st.sampled_from([0.0, 0.5, REASSERT_S, UNSURE_S])


class SplitMachine(RuleBasedStateMachine):
    """Schedulers that reach both servers, one of them or none, and servers that lose a copy.

    Claims that avoid unsure records are promises: together they never exceed the node (I8, I9), whatever the other
    claims do, and none is lost while one copy is left. All schedulers agree once they reach all servers again.
    """

    @initialize()
    def begin(self) -> None:
        self.parties = begun_late("s0", "s1", "s2")
        self.ahead_s = 0
        """By how many seconds the clock of the first server was set ahead."""
        self.promises: dict[str, Claim] = {}
        self.dropped: dict[str, Party] = {}
        """Claims that were given back or never made, and the scheduler that knows it."""
        self.connected_until = 0.0
        """Until then all schedulers reach all servers, so that they can write lost claims again."""

    def of(self, number: int) -> Party:
        return self.parties.parties[number % len(self.parties.parties)]

    @property
    def may_disconnect(self) -> bool:
        return self.parties.clock.monotonic() > self.connected_until

    @rule(number=numbers, away=st.sampled_from([(), (0,), (1,), (0,), (1,), (0, 1)]))
    def connect(self, number: int, away: tuple[int, ...]) -> None:
        if self.may_disconnect:
            cut(self.of(number), *away)

    @rule(sides=st.lists(st.integers(0, 1), min_size=3, max_size=3))
    def split(self, sides: list[int]) -> None:
        """Each scheduler reaches one of the servers only."""
        if self.may_disconnect:
            for party, side in zip(self.parties.parties, sides, strict=True):
                cut(party, side)

    @rule(number=numbers, calls=st.integers(0, 4), away=st.integers(0, 1), done=st.sampled_from([0, None]))
    def fail_later(self, number: int, calls: int, away: int, done: int | None) -> None:
        """A server goes away in the middle of an operation, with or without the effect of the last call."""
        left = iter(range(calls))
        if self.may_disconnect:
            connection = self.of(number).connections[away]
            connection.plan = lambda _operation, _count: None if next(left, None) is not None else Fault(done)

    def take(self, party: Party, size: int, *, avoid_unsure: bool, seconds: float = 30.0) -> Claim | None:
        """Claim as a placer does: select, claim, and after a conflict select again."""
        for _ in range(2):
            if NODE not in party.claim_table.records.known or party.free(NODE) < size:
                return None
            try:
                claim = party.claim(NODE, size, seconds, reservation="r" if avoid_unsure else "")
            except StoreUnavailableError:  # no clock answers
                return None
            party.claim_table.add_claim(NODE, claim, avoid_unsure=avoid_unsure)
            outcome = party.claim_table.flush()[NODE]
            if outcome is WriteStatus.STORED:
                return claim
            if isinstance(outcome, WriteStatus):
                self.dropped[claim.id] = party
        return None

    @rule(number=numbers, size=sizes, seconds=st.sampled_from([30.0, 300.0]))
    def promise(self, number: int, size: int, seconds: float) -> None:
        claim = self.take(self.of(number), size, avoid_unsure=True, seconds=seconds)
        if claim is not None:
            self.promises[claim.id] = claim

    @rule(number=numbers, size=sizes, keep=st.booleans())
    def boot(self, number: int, size: int, keep: bool) -> None:
        party = self.of(number)
        claim = self.take(party, size, avoid_unsure=False)
        if claim is not None and not keep:
            party.claim_table.drop_claim(NODE, claim.id)
            party.claim_table.flush_all()
            self.dropped[claim.id] = party

    @rule(number=numbers, which=numbers)
    def release(self, number: int, which: int) -> None:
        """Any scheduler that sees a promise releases it."""
        claim = self.promise_seen_by(self.of(number), which)
        if claim is not None:
            self.give_back(self.of(number), claim)

    def promise_seen_by(self, party: Party, which: int) -> Claim | None:
        known = party.claim_table.records.known.get(NODE)
        seen = [one for one in known.record.claims if one.id in self.promises] if known is not None else []
        return seen[which % len(seen)] if seen else None

    def give_back(self, party: Party, claim: Claim) -> None:
        party.claim_table.drop_claim(NODE, claim.id)
        party.claim_table.flush_all()
        del self.promises[claim.id]
        self.dropped[claim.id] = party

    @rule(number=numbers, which=numbers, seconds=st.sampled_from([5.0, 60.0, 300.0]))
    def extend(self, number: int, which: int, seconds: float) -> None:
        """A scheduler gives a claim of a reservation another deadline. If that fails, it releases the claim.

        It may see a claim that another scheduler has released. Then the claim is gone once all see both servers.
        """
        party = self.of(number)
        known = party.claim_table.records.known.get(NODE)
        seen = [one for one in known.record.claims if one.reservation] if known is not None else []
        if not seen:
            return
        claim = seen[which % len(seen)]
        try:
            extended, outcome = extend(party, claim, seconds)
        except StoreUnavailableError:  # no clock answers
            return
        if claim.id not in self.promises:
            return
        if outcome is WriteStatus.STORED:
            self.promises[claim.id] = extended
        else:
            self.give_back(party, claim)

    @rule(number=numbers, away=st.integers(0, 1))
    def delay_writes(self, number: int, away: int) -> None:
        """A server freezes with the next writes of a scheduler in its buffer."""
        if self.may_disconnect:
            self.of(number).connections[away].plan = lambda _operation, _count: Fault(0, late=True)

    @rule(number=numbers)
    def arrive(self, number: int) -> None:
        """The server carries out late writes. Their scheduler may have forgotten a claim that they add."""
        for connection in self.of(number).connections:
            while connection.late:
                connection.arrive()
        for claim_id in self.dropped.keys() & set().union(*self.copies()):
            if self.dropped[claim_id] is self.of(number):
                del self.dropped[claim_id]

    def arrive_all(self) -> None:
        for number in range(len(self.parties.parties)):
            self.arrive(number)

    @rule(number=numbers)
    def die(self, number: int) -> None:
        """A scheduler dies, and one without any knowledge starts, which reaches both servers."""
        index = number % len(self.parties.parties)
        dead = self.parties.parties[index]
        self.parties.parties[index] = party = self.parties.start(f"{dead.name}'")
        for connection, like in zip(party.connections, dead.connections, strict=True):
            connection._ahead_s = like._ahead_s
        party.look(ChangingPartition(host(NODE, vcpu=VCPU)).view)
        for claim_id, holder in list(self.dropped.items()):
            if holder is dead and any(claim_id in ids for ids in self.copies()):
                del self.dropped[claim_id]  # a copy has it, and no scheduler is left that knows that it was dropped

    def copies(self) -> list[set[str]]:
        """The ids of the claims in each copy."""
        found = []
        for place, number in enumerate(homes(self.parties)):
            key = (keys.claim, keys.claim_copy)[place](CELL, NODE)
            item = self.parties.servers[number].fetch([key]).get(key)
            found.append({claim.id for claim in CLAIMS.unpack(item.value).claims} if item is not None else set())
        return found

    @rule(
        which=st.integers(0, 1), how=st.sampled_from(["flush", "evict", "restart"]), finder=numbers, heals=st.booleans()
    )
    def lose(self, which: int, how: str, finder: int, heals: bool) -> None:
        """One server loses its copy. The other copy may have missed writes, but it has all promises.

        ``heals``: all schedulers reach both servers, and one fills the copy again. Otherwise it may be filled, or begun
        empty, at any time by schedulers that do not reach the other one.
        """
        if not self.live_promises().keys() <= self.copies()[1 - which]:
            return
        if heals:
            for party in self.parties.parties:
                cut(party)
            self.connected_until = self.parties.clock.monotonic() + UNSURE_S + CLOCK_S
        for claim_id in self.copies()[1 - which] & self.dropped.keys():
            del self.dropped[claim_id]  # the lost copy may have been the only one that knew
        self.parties.clock.advance(0.001)
        lose(self.parties, which, how)
        upkeep(self.of(finder))

    @rule(which=st.integers(0, 1), shift=st.sampled_from(SHIFTS))
    def set_clock(self, which: int, shift: int) -> None:
        """One server loses its copy, and has another clock. The schedulers reach both, and find that by themselves."""
        if not self.may_disconnect or not self.live_promises().keys() <= self.copies()[1 - which]:
            return  # all have read the records since the last clock was set
        if which == 0 and self.ahead_s + shift < -90_000:  # no clock tells times before 1970
            return
        for party in self.parties.parties:
            cut(party)
        self.connected_until = self.parties.clock.monotonic() + UNSURE_S + CLOCK_S
        for claim_id in self.copies()[1 - which] & self.dropped.keys():
            del self.dropped[claim_id]
        restart(self.parties, which, shift)
        if which == 0:
            self.ahead_s += shift
            self.promises = {
                key: msgspec.structs.replace(claim, until=claim.until + shift) for key, claim in self.promises.items()
            }

    @rule(which=st.integers(0, 1))
    def fill(self, which: int) -> None:
        """One server has no memory left for larger values, until all is healed."""
        fill(self.parties.servers[homes(self.parties)[which]])

    @rule(which=numbers, size=sizes)
    def have_one_copy(self, which: int, size: int) -> None:
        """All schedulers are replaced by one with one copy, which releases a promise and boots, and later by others.

        These write both copies before a server goes away.
        """
        self.arrive_all()
        if self.copies()[0] != self.copies()[1]:  # the copy that stays has all claims
            return
        self.parties.servers[homes(self.parties)[0]]._max_bytes = None
        self.parties.clock.advance(CLOCK_S)  # the time of writing tells which copy was left behind
        alone = single(self.parties, f"alone at {self.parties.clock.monotonic()}")
        self.promises = {
            claim.id: claim
            for claim in self.parties.record(NODE).claims
            if claim.id in self.promises and claim.until > self.now()
        }
        self.dropped.clear()  # no scheduler is left that knows
        claim = self.promise_seen_by(alone, which)
        if claim is not None:
            self.give_back(alone, claim)
        self.take(alone, size, avoid_unsure=False)
        self.parties.clock.advance(1.0)
        for number in range(len(self.parties.parties)):
            self.die(number)
        self.parties.clock.advance(2 * IN_FLIGHT_S)
        upkeep(*self.parties.parties)

    @rule()
    def heal(self) -> None:
        """All schedulers reach all servers. All of them and both copies agree then, and dropped claims are gone."""
        self.arrive_all()
        for server in self.parties.servers:
            server._max_bytes = None
        heal(self.parties)
        first, second = self.copies()
        assert first == second
        assert self.live_promises().keys() <= first
        assert not self.dropped.keys() & first
        assert len({party.free(NODE) for party in self.parties.parties}) == 1

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        while seconds > 0:
            self.parties.clock.advance(min(seconds, REASSERT_S))
            seconds -= REASSERT_S
            upkeep(*self.parties.parties)

    def live_promises(self) -> dict[str, Claim]:
        return {key: claim for key, claim in self.promises.items() if claim.until > self.now()}

    def now(self) -> float:
        """The time of the clock that deadlines refer to."""
        return self.parties.clock.monotonic() + self.ahead_s

    @invariant()
    def the_node_is_not_promised_twice(self) -> None:
        if hasattr(self, "parties"):
            held = {key: claim.resources["VCPU"] for key, claim in self.live_promises().items()}
            assert sum(held.values()) <= VCPU, held

    @invariant()
    def a_promise_is_in_a_copy_until_its_deadline(self) -> None:
        if hasattr(self, "parties"):
            assert self.live_promises().keys() <= set().union(*self.copies())

    def teardown(self) -> None:
        """No room stays taken."""
        if not hasattr(self, "parties"):
            return
        self.heal()
        self.parties.clock.advance(300.0 + 3 * CLOCK_S)
        upkeep(*self.parties.parties)
        assert {party.free(NODE) for party in self.parties.parties} == {VCPU}


TestSplits = SplitMachine.TestCase
TestSplits.settings = settings(settings(), stateful_step_count=30)
