"""Earlier claim records and affinity seeds of a memcached, stored again by a program that cannot make its own.

A claim record says who claims room, not who has it. So a copy can take claims back or bring former ones back until
their holders write them again or they expire, and the agent admits by the state of its node (I8).
"""

from __future__ import annotations

from nodestate.scheduling.claims import CLAIMS, Claim
from nodestate.scheduling.claims.record import REASSERT_S, is_unsure
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse
from nodestate.store import keys
from nodestate.testing import ManualClock, MemoryServer
from tests.planted_values import content, item_at, replace, sealed
from tests.scheduling.cells import VCPU, boot, cell_of, freeze_view, wanted
from tests.scheduling.claim_tables import CELL, CLAIM_TTL_S, Party
from tests.scheduling.fleets import ChangingPartition, host
from tests.scheduling.test_affinity_seed import two_schedulers
from tests.scheduling.test_claim_table import begun


def test_no_node_is_overcommitted_if_an_earlier_claim_record_hides_a_claim() -> None:
    """I8: the second scheduler places an instance on a full node, and the node's agent refuses it."""
    cell, [first, second] = cell_of(nodes=1)
    server, key = cell.server("n0"), keys.claim(CELL, "n0")
    copy = item_at(server, key).value
    freeze_view(cell, second)
    boot(first.scheduler, "vm-1", VCPU)
    replace(server, key, copy)
    assert cell.claims("n0") == []
    [outcome] = second.scheduler.boot(parse(wanted("vm-2", VCPU)))
    assert not isinstance(outcome, Booted)
    cell.run_for(30.0)
    first.scheduler.refresh()
    second.reader.lagging = False
    second.scheduler.refresh()
    cell.check_agents()
    assert cell.nodes_by_instance() == {"vm-1": ["n0"]}


def test_an_earlier_record_counts_as_lost_and_holders_write_their_claims_again() -> None:
    """Regression: the holder took a claim that was missing for one that another scheduler had removed."""
    parties = begun("one", "other")
    one, other = parties.parties
    one.take("a", 1)
    copy = item_at(parties.server_of("a"), keys.claim(CELL, "a")).value
    held = one.take("a", 2)
    assert isinstance(held, Claim)
    replace(parties.server_of("a"), keys.claim(CELL, "a"), copy)
    other.claim_table.read_records(["a"])
    assert other.free("a") == 7, "it has not seen a later record"
    parties.clock.advance(REASSERT_S)
    one.claim_table.reassert_own_claims()
    one.claim_table.flush()
    assert is_unsure(parties.record("a"), parties.clock.monotonic())
    other.claim_table.read_records(["a"])
    assert other.free("a") == 5
    assert held.id in parties.ids("a")


def test_no_copy_of_a_record_that_a_scheduler_has_read_hides_a_claim_from_it() -> None:
    """With records of earlier schedulers, which write no time, between the others."""
    parties = begun("one", "other")
    one, other = parties.parties
    key, copies = keys.claim(CELL, "a"), list[bytes]()
    for number in range(6):
        one.claim_table.read_records(["a"])
        one.take("a", 1)
        if number == 3:
            parties.put("a", sealed(content(item_at(parties.server_of("a"), key).value)[:4]))
        other.claim_table.read_records(["a"])
        assert other.free("a") == 7 - number
        copies.append(item_at(parties.server_of("a"), key).value)
        parties.clock.advance(0.01)
    for copy in [*copies[:3], copies[4]]:
        replace(parties.server_of("a"), key, copy)
        other.claim_table.read_records(["a"])
        assert not other.claim_table.records.known["a"].record.claims
        assert is_unsure(parties.record("a"), parties.clock.monotonic())


def test_schedulers_agree_on_a_record_after_the_server_restarted_with_its_clock_set_back() -> None:
    """Each of them makes one record at most, as all records are earlier than the last one that it knew."""
    parties = begun("one", "other")
    one, other = parties.parties
    parties.evict("a")
    parties.clock.advance(100.0)
    one.claim_table.read_records(["a"])
    held = one.take("a", 2)
    assert isinstance(held, Claim)
    other.claim_table.read_records(["a"])
    created = sum(party.claim_table.stats.created for party in (one, other))
    server = parties.server_of("a")
    server.restart()
    server.clock = ManualClock()
    for party in (other, one, other, one):
        party.claim_table.read_records(["a"])
        party.claim_table.flush()
    other.claim_table.read_records(["a"])
    assert (parties.ids("a"), other.free("a")) == ([held.id], 6)
    assert sum(party.claim_table.stats.created for party in (one, other)) <= created + 2


def test_a_claim_that_an_earlier_record_brings_back_expires_at_its_first_deadline() -> None:
    parties = begun("one", "other")
    one, other = parties.parties
    held = one.take("a", 8)
    assert isinstance(held, Claim)
    copy = item_at(parties.server_of("a"), keys.claim(CELL, "a")).value
    one.claim_table.drop_claim("a", held.id)
    one.claim_table.flush()
    for _ in range(3):
        replace(parties.server_of("a"), keys.claim(CELL, "a"), copy)
        other.claim_table.read_records(["a"])
        assert other.free("a") == 0
        parties.clock.advance(CLAIM_TTL_S / 2)
    other.claim_table.read_records(["a"])
    other.refresh()
    assert other.free("a") == 8


def test_an_earlier_seed_moves_the_first_member_of_a_group_and_no_later_one() -> None:
    """All schedulers see the same seed, so all members still meet on one node."""
    clock, [connection], one, other = two_schedulers()
    server, key = connection.inner.server, keys.anchor(CELL, "web")
    assert one.claim_or_get("web", "a", 30.0).node == "a"
    copy = item_at(server, key).value
    clock.advance(31.0)
    assert one.claim_or_get("web", "b", 30.0).node == "b"
    replace(server, key, copy, 30)
    assert {party.claim_or_get("web", "c", 30.0).node for party in (one, other)} == {"a"}


def test_no_scheduler_replaces_a_record_because_the_servers_clock_was_set_back() -> None:
    """After a restart, the server's clock may be behind the times of the records that it lost."""
    clock = ManualClock()
    clock.advance(10_000.0)
    server = MemoryServer(clock=clock)
    parties = [Party(name, [server], clock) for name in "ab"]
    for party in parties:
        party.look(ChangingPartition(host("x", vcpu=8)).view)
        assert isinstance(party.take("x"), Claim)
    parties[0].claim_table.read_records(["x"])
    server.flush()
    server.clock = ManualClock()
    created = [party.claim_table.stats.created for party in parties]
    for party in parties:
        party.claim_table.reassert_own_claims()
        party.claim_table.flush_all()
        server.clock.advance(0.1)
    assert [party.claim_table.stats.created for party in parties] == [created[0] + 1, created[1]]
    record = CLAIMS.unpack(item_at(server, keys.claim(CELL, "x")).value)
    assert sorted(claim.holder for claim in record.claims) == ["a", "b"]
